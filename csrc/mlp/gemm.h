// The one matrix product of the perceptrons: C (+)= A B with lanes over the columns of B.
#pragma once
#include "simd/vector.h"

namespace gwf::GWF_ISA {

// What becomes of a block of the product while it is in registers; i, j: its first row and column. Where the distance
// of its rows is known to the compiler, as `known`, it does not keep the address of each in memory.
template <class T> struct StoreBlock {
    T* c;
    int64_t stride;
    bool accumulate;  // adds to what was there: a sum of sums has less rounding

    template <int MR, int NV, int known>
    GWF_INLINE void finish(const vec<T> (&sum)[MR][NV], int64_t i, int64_t j) const {
        const int64_t step = known ? known : stride;
#pragma GCC unroll 32
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 32
            for (int n = 0; n < NV; n++) {
                T* target = c + i * step + j + (r * step + n * lanes<T>);
                store(target, accumulate ? vec<T>(load(target) + sum[r][n]) : sum[r][n]);
            }
    }
};

// MR x NV vectors of C stay in registers. A is read by broadcasts: A(i, k) = a[i * lda + k], or a[k * lda + i] where
// transposed, as a weight gradient needs.
// known: where it is not 0, lda and the epilogue's stride; many rows of unknown distance would need more registers than
// there are.
template <bool transposed, int MR, int NV, int known = 0, class T, class Epilogue>
GWF_INLINE void multiply_block(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t K, const T* bias,
                               int64_t first, int64_t column, Epilogue& epilogue) {
    constexpr int L = lanes<T>;
    if constexpr (known > 0) lda = known;
    vec<T> sum[MR][NV];
#pragma GCC unroll 32
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 32
        for (int j = 0; j < NV; j++) sum[i][j] = bias ? load(bias + j * L) : vec<T>{};
    for (int64_t k = 0; k < K; k++) {
        vec<T> row[NV];
#pragma GCC unroll 32
        for (int j = 0; j < NV; j++) row[j] = load(b + j * L);
#pragma GCC unroll 32
        for (int i = 0; i < MR; i++) {
            const vec<T> s = splat(transposed ? a[i] : a[i * lda]);
#pragma GCC unroll 32
            for (int j = 0; j < NV; j++) sum[i][j] += s * row[j];
        }
        a += transposed ? lda : 1;
        b += ldb;
    }
    epilogue.template finish<MR, NV, known>(sum, first, column);
}

// The same for any epilogue; columns a multiple of the lanes.
template <bool transposed, class T, class Epilogue>
void multiply_into(Epilogue& epilogue, const T* a, int64_t lda, const T* b, int64_t ldb, int64_t K, int64_t rows,
                   int64_t columns, const std::type_identity_t<T>* bias = nullptr) {
    constexpr int L = lanes<T>;
    const int64_t step = transposed ? 1 : lda;
    int64_t j = 0;
    auto run = [&]<int MR, int NV, int known = 0>(std::integral_constant<int, MR>, std::integral_constant<int, NV>,
                                                  std::integral_constant<int, known> = {}) {
        for (; j + NV * L <= columns; j += NV * L) {
            int64_t i = 0;
            auto some_rows = [&]<int M>(std::integral_constant<int, M>) {
                for (; i + M <= rows; i += M)
                    multiply_block<transposed, M, NV, known>(a + i * step, lda, b + j, ldb, K,
                                                             bias ? bias + j : nullptr, i, j, epilogue);
            };
            some_rows(std::integral_constant<int, MR>{});
            if constexpr (MR > 16) some_rows(std::integral_constant<int, 8>{});
            some_rows(std::integral_constant<int, 4>{});
            some_rows(std::integral_constant<int, 2>{});
            some_rows(std::integral_constant<int, 1>{});
        }
    };
    // as many accumulators as the registers hold: 32 with AVX-512, else 16
    if constexpr (vector_bytes == 64) {
        run(std::integral_constant<int, 6>{}, std::integral_constant<int, 4>{});
        run(std::integral_constant<int, 12>{}, std::integral_constant<int, 2>{});
        if (transposed) run(std::integral_constant<int, 16>{}, std::integral_constant<int, 1>{});
        if (!transposed && lda == L && epilogue.stride == L)
            run(std::integral_constant<int, 20>{}, std::integral_constant<int, 1>{}, std::integral_constant<int, L>{});
        run(std::integral_constant<int, 8>{}, std::integral_constant<int, 1>{});
    } else {
        run(std::integral_constant<int, 6>{}, std::integral_constant<int, 2>{});
        run(std::integral_constant<int, 8>{}, std::integral_constant<int, 1>{});
    }
}

// C [rows, columns], columns a multiple of the lanes: A B, plus a row of biases, plus what was there.
template <bool transposed, class T>
void multiply(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t K, T* c, int64_t ldc, int64_t rows,
              int64_t columns, const std::type_identity_t<T>* bias = nullptr, bool accumulate = false) {
    StoreBlock<T> epilogue{c, ldc, accumulate};
    multiply_into<transposed>(epilogue, a, lda, b, ldb, K, rows, columns, bias);
}

}  // namespace gwf::GWF_ISA
