// The one matrix product of the perceptrons: C (+)= A B with lanes over the columns of B.
#pragma once
#include "simd/vector.h"

namespace gwf::GWF_ISA {

// MR x NV vectors of C stay in registers. A is read by broadcasts: A(i, k) = a[i * lda + k], or a[k * lda + i] where
// transposed, as a weight gradient needs.
template <bool transposed, int MR, int NV, class T>
GWF_INLINE void multiply_block(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t K, T* c, int64_t ldc,
                               const T* bias, bool accumulate) {
    constexpr int L = lanes<T>;
    vec<T> sum[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 16
        for (int j = 0; j < NV; j++) sum[i][j] = bias ? load(bias + j * L) : vec<T>{};
    for (int64_t k = 0; k < K; k++) {
        vec<T> row[NV];
#pragma GCC unroll 16
        for (int j = 0; j < NV; j++) row[j] = load(b + j * L);
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++) {
            const vec<T> s = splat(transposed ? a[i] : a[i * lda]);
#pragma GCC unroll 16
            for (int j = 0; j < NV; j++) sum[i][j] += s * row[j];
        }
        a += transposed ? lda : 1;
        b += ldb;
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 16
        for (int j = 0; j < NV; j++) {
            T* target = c + i * ldc + j * L;
            store(target, accumulate ? vec<T>(load(target) + sum[i][j]) : sum[i][j]);  // a sum of sums: less rounding
        }
}

template <bool transposed, int MR, int NV, class T>
void multiply_rows(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t K, T* c, int64_t ldc, int64_t rows,
                   const T* bias, bool accumulate) {
    const int64_t step = transposed ? 1 : lda;
    int64_t i = 0;
    auto run = [&]<int M>(std::integral_constant<int, M>) {
        for (; i + M <= rows; i += M)
            multiply_block<transposed, M, NV>(a + i * step, lda, b, ldb, K, c + i * ldc, ldc, bias, accumulate);
    };
    run(std::integral_constant<int, MR>{});
    run(std::integral_constant<int, 4>{});
    run(std::integral_constant<int, 2>{});
    run(std::integral_constant<int, 1>{});
}

// C [rows, columns], columns a multiple of the lanes: A B, plus a row of biases, plus what was there.
template <bool transposed, class T>
void multiply(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t K, T* c, int64_t ldc, int64_t rows,
              int64_t columns, const std::type_identity_t<T>* bias = nullptr, bool accumulate = false) {
    constexpr int L = lanes<T>;
    int64_t j = 0;
    auto run = [&]<int MR, int NV>(std::integral_constant<int, MR>, std::integral_constant<int, NV>) {
        for (; j + NV * L <= columns; j += NV * L)
            multiply_rows<transposed, MR, NV>(a, lda, b + j, ldb, K, c + j, ldc, rows, bias ? bias + j : nullptr,
                                              accumulate);
    };
    // as many accumulators as the registers hold: 32 with AVX-512, else 16
    if constexpr (vector_bytes == 64) {
        run(std::integral_constant<int, 6>{}, std::integral_constant<int, 4>{});
        run(std::integral_constant<int, 12>{}, std::integral_constant<int, 2>{});
    } else {
        run(std::integral_constant<int, 6>{}, std::integral_constant<int, 2>{});
    }
    run(std::integral_constant<int, 8>{}, std::integral_constant<int, 1>{});
}

}  // namespace gwf::GWF_ISA
