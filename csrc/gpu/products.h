// The three products of a network's layer, with rows in shared memory, by all threads of a block: each has a tile of
// 4 x 4, 2 x 4 or 1 x 4 results, and `split` neighbours share the terms of a tile.
#pragma once
#include "gpu/device_math.h"
#include "gpu/rows.h"

namespace gwf::gpu {

template <class T> struct alignas(16) Four {
    T v[4];
};
template <class T> __device__ __forceinline__ Four<T> four(const T* p) { return *reinterpret_cast<const Four<T>*>(p); }

// The block's shared memory. Functions that aren't inlined take places in it and come here for the pointer: the
// compiler can't see across a call that a pointer is to shared memory, and would not use its instructions.
#if defined(__CUDACC__)
template <class T> __device__ __forceinline__ T* shared_memory() {
    extern __shared__ uint4 memory[];
    return reinterpret_cast<T*>(memory);
}
#else
template <class T> T* shared_memory() { return reinterpret_cast<T*>(fibers::memory()); }
#endif

__device__ __forceinline__ float exchanged(float v, int with) { return __shfl_xor_sync(0xffffffffu, v, with); }
__device__ __forceinline__ double exchanged(double v, int with) { return __shfl_xor_sync(0xffffffffu, v, with); }

// Largest power of two that is at most `most`, as a share of the threads that `tiles` leave.
__device__ __forceinline__ int split_of(int tiles, int most) {
    int split = 1;
    while (2 * split <= most && 2 * split * tiles <= int(blockDim.x)) split *= 2;
    return split;
}

// Adds N numbers over `split` neighbours, in a fixed order; each is left with N / split of them, from the returned one
// on. A recursion, since a loop that halves isn't unrolled, and the numbers would be in memory.
template <int Half, int Bit, int N, class T>
__device__ __forceinline__ int fold_halves(T (&v)[N], int split, int share) {
    if constexpr (Half == 0) {
        return 0;
    } else {
        int first = 0;
        if (Bit < split) {
            const bool upper = (share & Bit) != 0;
            GWF_UNROLL_ALL
            for (int i = 0; i < Half; i++) {
                const T given = upper ? v[i] : v[i + Half], kept = upper ? v[i + Half] : v[i];
                v[i] = kept + exchanged(given, Bit);
            }
            if (upper) first = Half;
        }
        return first + fold_halves<Half / 2, 2 * Bit>(v, split, share);
    }
}
template <int N, class T> __device__ __forceinline__ int fold(T (&v)[N], int split, int share) {
    return fold_halves<N / 2, 1>(v, split, share);
}

// C(r, c) = sum of a(r, k) w(k, c) over k < depth, a multiple of 4, for rows [rows][stride]; finish(r, c, C(r, c)) once
// each, also for r >= rows and c >= columns, which it has to leave out. w(k, c) is w[c * width + k] where `across`,
// else w[k * width + c]; a bias stands in column `bias` of w's rows where it isn't one of the terms, else bias is -1.
template <bool across, int R, class T, class Finish>
__device__ __forceinline__ void multiply_tiles(const T* a, int stride, const T* w, int width, int depth, int rows,
                                               int columns, int bias, int split, Finish& finish) {
    constexpr int C = 4, N = R * C;
    const int row_tiles = (rows + R - 1) / R, column_tiles = (columns + C - 1) / C, tiles = row_tiles * column_tiles;
    const int share = int(threadIdx.x) & (split - 1), step = int(blockDim.x) / split;
    // whole warps go round together: they exchange sums
    for (int start = 0; start < tiles; start += step) {
        const int tile = start + int(threadIdx.x) / split;
        const bool there = tile < tiles;
        const int row = there ? tile / column_tiles : 0, column = there ? tile % column_tiles : 0;
        T sum[N];
        GWF_UNROLL_ALL
        for (int i = 0; i < N; i++)
            sum[i] = across && bias >= 0 && share == 0 ? w[(column + i % C * column_tiles) * width + bias] : T(0);
        for (int k = there ? 4 * share : depth; k < depth; k += 4 * split) {
            Four<T> left[R];
            GWF_UNROLL_ALL
            for (int i = 0; i < R; i++) left[i] = four(a + (row + i * row_tiles) * stride + k);
            GWF_UNROLL_ALL
            for (int j = 0; j < 4; j++) {
                // rows far apart: neighbours then read neighbouring banks
                const Four<T> right =
                    across ? four(w + (column + j * column_tiles) * width + k) : four(w + (k + j) * width + C * column);
                GWF_UNROLL_ALL
                for (int i = 0; i < R; i++) GWF_UNROLL_ALL
                for (int m = 0; m < 4; m++) {
                    if constexpr (across)
                        sum[i * C + j] += left[i].v[m] * right.v[m];
                    else
                        sum[i * C + m] += left[i].v[j] * right.v[m];
                }
            }
        }
        const int first = fold(sum, split, share), held = N / split;
        GWF_UNROLL_ALL
        for (int i = 0; i < N; i++)
            if (there && i < held) {
                const int at = first + i, j = at % C;
                finish(row + at / C * row_tiles, across ? column + j * column_tiles : C * column + j, sum[i]);
            }
    }
}

template <bool across, class T, class Finish>
__device__ __forceinline__ void multiply_block(const T* a, int stride, const T* w, int width, int depth, int rows,
                                               int columns, int bias, Finish& finish) {
    const int column_tiles = (columns + 3) / 4, terms = depth / 4, most = terms < 8 ? terms : 8;
    const int half = int(blockDim.x) / 2;
    auto tiles = [&](int R) { return (rows + R - 1) / R * column_tiles; };
    if (int split = split_of(tiles(4), most); split * tiles(4) >= half)
        multiply_tiles<across, 4>(a, stride, w, width, depth, rows, columns, bias, split, finish);
    else if (split = split_of(tiles(2), most); split * tiles(2) >= half)
        multiply_tiles<across, 2>(a, stride, w, width, depth, rows, columns, bias, split, finish);
    else
        multiply_tiles<across, 1>(a, stride, w, width, depth, rows, columns, bias,
                                  split_of(tiles(1), most < 4 ? most : 4), finish);
}

// sums(o, i) (+)= sum of d(r, o) a(r, i) over the rows, for all of [outs][a's stride]; outs a multiple of 4.
template <class T>
__device__ __forceinline__ void multiply_rows(const T* d, int d_stride, const T* a, int a_stride, int rows, int outs,
                                              T* sums, bool add) {
    const int columns = a_stride / 4, tiles = outs / 4 * columns, split = split_of(tiles, rows < 16 ? rows : 16);
    const int share = int(threadIdx.x) & (split - 1), step = int(blockDim.x) / split;
    for (int start = 0; start < tiles; start += step) {
        const int tile = start + int(threadIdx.x) / split;
        const bool there = tile < tiles;
        const int o = there ? tile / columns * 4 : 0, i = there ? tile % columns * 4 : 0;
        T sum[16] = {};
        for (int r = there ? share : rows; r < rows; r += split) {
            const Four<T> left = four(d + r * d_stride + o), right = four(a + r * a_stride + i);
            GWF_UNROLL_ALL
            for (int m = 0; m < 16; m++) sum[m] += left.v[m / 4] * right.v[m % 4];
        }
        const int first = fold(sum, split, share), held = 16 / split;
        GWF_UNROLL_ALL
        for (int m = 0; m < 16; m++)
            if (there && m < held) {
                T* to = sums + (o + (first + m) / 4) * a_stride + i + (first + m) % 4;
                *to = add ? *to + sum[m] : sum[m];
            }
    }
}

}  // namespace gwf::gpu
