// How a block's threads share the rows of a tile, as two policies of the same form. Lanes: a group of lanes has its
// rows through all layers, so only the threads of a warp wait for each other. Tiles: all threads have a product
// together (products.h). In both, row r belongs to group r % groups where numbers are taken one by one.
#pragma once
#include "gpu/primal_dual.h"
#include "gpu/products.h"

namespace gwf::gpu {

// The rows of this thread's group are first, first + step, ...; a group without rows has its first beyond all.
struct RowGroup {
    int lane, lanes, first, step;

    __device__ explicit RowGroup(const LoopSharing& sharing)
        : lane(int(threadIdx.x) & ((1 << sharing.lane_bits) - 1)),
          lanes(1 << sharing.lane_bits),
          first(int(threadIdx.x) >> sharing.lane_bits),
          step(sharing.groups) {
        if (first >= step) first = 1 << 28;
    }

    // f(r, c) for the numbers of rows [rows][columns], each by a lane of its row's group.
    template <class F> __device__ __forceinline__ void each(int rows, int columns, F&& f) const {
        for (int r = first; r < rows; r += step)
            for (int c = lane; c < columns; c += lanes) f(r, c);
    }

    // f(r) by one lane of the row's group.
    template <class F> __device__ __forceinline__ void each_row(int rows, F&& f) const {
        if (lane != 0) return;
        for (int r = first; r < rows; r += step) f(r);
    }

    // f(r, whether there is such a row), by whole warps: they may exchange numbers.
    template <class F> __device__ __forceinline__ void together(int rows, F&& f) const {
        for (int start = 0; start < rows; start += step) f(start + first, start + first < rows);
    }

    // The sum over the lanes of a group, in all of them.
    template <class T> __device__ __forceinline__ T sum(T v) const {
        for (int bit = lanes / 2; bit > 0; bit /= 2) v += exchanged(v, bit);
        return v;
    }
};

struct Tiles {
    static constexpr bool shares_rows = true;  // threads of other warps work on a row
    __device__ static __forceinline__ void sync() { __syncthreads(); }

    template <bool across, class T, class Finish>
    __device__ static __forceinline__ void multiply(const RowGroup&, const T* a, int stride, const T* w, int width,
                                                    int depth, int rows, int columns, int bias, Finish& finish) {
        multiply_block<across>(a, stride, w, width, depth, rows, columns, bias, finish);
    }
};

// C results a lane of each of R rows at a time; contract: products.h. Results of rows beyond are computed of one that
// is there, and left out by finish.
template <int C, bool across, int R, class T, class Finish>
__device__ __forceinline__ void multiply_lanes(const RowGroup& at, const T* a, int stride, const T* w, int width,
                                               int depth, int rows, int columns, int bias, Finish& finish) {
    constexpr int parts = R * C == 1 ? 4 : R * C == 2 ? 2 : 1;  // chains of additions
    constexpr int steps = R * C > 4 ? 2 : 4;
    for (int r = at.first; r < rows; r += R * at.step) {
        const T* x[R];
        GWF_UNROLL_ALL
        for (int i = 0; i < R; i++) x[i] = a + (r + i * at.step < rows ? r + i * at.step : r) * stride;
        for (int start = 0; start < columns; start += C * at.lanes) {
            const int last = across ? columns - 1 : width - 1;
            const T* y[C];
            T sum[R][C][parts] = {};
            GWF_UNROLL_ALL
            for (int j = 0; j < C; j++) {
                const int column = start + at.lane + j * at.lanes;
                y[j] = w + (column < last ? column : last) * (across ? width : 1);
                if (!across || bias < 0) continue;
                const T shift = y[j][bias];
                GWF_UNROLL_ALL
                for (int i = 0; i < R; i++) sum[i][j][0] = shift;
            }
            GWF_UNROLL(steps)
            for (int k = 0; k < depth; k += 4) {
                Four<T> left[R];
                GWF_UNROLL_ALL
                for (int i = 0; i < R; i++) left[i] = four(x[i] + k);
                GWF_UNROLL_ALL
                for (int j = 0; j < C; j++) {
                    Four<T> right;
                    if constexpr (across) {
                        right = four(y[j] + k);
                    } else {
                        GWF_UNROLL_ALL
                        for (int m = 0; m < 4; m++) right.v[m] = y[j][(k + m) * width];
                    }
                    GWF_UNROLL_ALL
                    for (int i = 0; i < R; i++) GWF_UNROLL_ALL
                    for (int m = 0; m < 4; m++) sum[i][j][m % parts] += left[i].v[m] * right.v[m];
                }
            }
            GWF_UNROLL_ALL
            for (int i = 0; i < R; i++) GWF_UNROLL_ALL
            for (int j = 0; j < C; j++) {
                GWF_UNROLL_ALL
                for (int m = 1; m < parts; m++) sum[i][j][0] += sum[i][j][m];
                finish(r + i * at.step, start + at.lane + j * at.lanes, sum[i][j][0]);
            }
        }
    }
}

template <int C> struct Lanes {
    static constexpr bool shares_rows = false;
    __device__ static __forceinline__ void sync() { __syncwarp(); }

    template <bool across, class T, class Finish>
    __device__ static __forceinline__ void multiply(const RowGroup& at, const T* a, int stride, const T* w, int width,
                                                    int depth, int rows, int columns, int bias, Finish& finish) {
        if (rows <= at.step)
            multiply_lanes<C, across, 1>(at, a, stride, w, width, depth, rows, columns, bias, finish);
        else if (C == 1 || rows <= 2 * at.step)
            multiply_lanes<C, across, 2>(at, a, stride, w, width, depth, rows, columns, bias, finish);
        else
            multiply_lanes<C, across, C == 1 ? 2 : 4>(at, a, stride, w, width, depth, rows, columns, bias, finish);
    }
};

// What multiply_rows does, for all layers at once: a thread has O outputs x 4 inputs of a layer at a time. Weights of
// layers follow on each other, and so do these units. cotangents(l) and inputs(l): rows of a layer in shared memory.
template <int O, class T, class Cotangents, class Inputs>
__device__ __forceinline__ void multiply_all_rows(const LoopNetwork& net, const Cotangents& cotangents,
                                                  const Inputs& inputs, int rows, T* sums, bool add) {
    const int units = net.weights / (4 * O);
    int l = 0;
    for (int unit = int(threadIdx.x); unit < units; unit += int(blockDim.x)) {
        while (l + 1 < net.depth && net.layer[l + 1].weight <= 4 * O * unit) l++;
        const LoopLayer& layer = net.layer[l];
        const int stride = layer.in_stride, d_stride = layer.out_stride;
        const int place = unit - layer.weight / (4 * O), o = place / (stride / 4) * O, i = place % (stride / 4) * 4;
        const T *d = cotangents(l) + o, *a = inputs(l) + i;
        T sum[O][4] = {};
        GWF_UNROLL(4)
        for (int r = 0; r < rows; r++) {
            const Four<T> right = four(a + r * stride);
            T left[O];
            if constexpr (O == 4) {
                const Four<T> all = four(d + r * d_stride);
                GWF_UNROLL_ALL
                for (int j = 0; j < O; j++) left[j] = all.v[j];
            } else {
                left[0] = d[r * d_stride];
            }
            GWF_UNROLL_ALL
            for (int j = 0; j < O; j++) GWF_UNROLL_ALL
            for (int m = 0; m < 4; m++) sum[j][m] += left[j] * right.v[m];
        }
        GWF_UNROLL_ALL
        for (int j = 0; j < O; j++) {
            Four<T>* to = reinterpret_cast<Four<T>*>(sums + layer.weight + (o + j) * stride + i);
            Four<T> made{};
            if (add) made = *to;
            GWF_UNROLL_ALL
            for (int m = 0; m < 4; m++) made.v[m] += sum[j][m];
            *to = made;
        }
    }
}

}  // namespace gwf::gpu
