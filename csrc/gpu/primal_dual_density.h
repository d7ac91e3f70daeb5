// Densities with closed forms, and affine maps, on a tile of rows in shared memory [rows][stride].
#pragma once
#include "gpu/primal_dual_network.h"

namespace gwf::gpu {

template <class T> __device__ __forceinline__ T infinity() {
    return sizeof(T) == 4 ? T(__builtin_huge_valf()) : T(__builtin_huge_val());
}

template <class P, class T>
__device__ __forceinline__ const T* affine_weights(const Block<T>& block, const LoopAffine& affine) {
    const int dim = block.a.dim;
    return weights_of<P>(affine.resident, block.a.numbers + affine.at, block.a.layout.staging,
                         in_fours(dim) * padded(dim));
}

// to = matrix x + shift, for rows that end in a one.
template <class P, class T>
__device__ __noinline__ void apply_affine(Block<T> block, const LoopAffine& affine, int x, int rows, int to) {
    const int dim = block.a.dim, stride = padded(dim);
    T* out = block.memory() + to;
    StoreForward<T> finish{out, out, out, false, false, stride, rows, dim, Function::identity, T(0)};
    multiply_forward<P>(block.rows, block.memory() + x, stride, affine_weights<P>(block, affine), dim, finish);
    P::sync();
}

// A cotangent u of its value to one of x, stored or added.
template <class P, class T>
__device__ __noinline__ void pull_back_affine(Block<T> block, const LoopAffine& affine, int u, int rows, int to,
                                              Store store) {
    const int dim = block.a.dim, stride = padded(dim);
    T* out = block.memory() + to;
    StoreBackward<T> finish{out, out, stride, rows, dim, store, Function::identity, T(0), T(0)};
    multiply_backward<P>(block.rows, block.memory() + u, stride, affine_weights<P>(block, affine), stride, dim, finish);
    P::sync();
}

// The sum of log Q over the rows is shared by the threads; factor times the gradient is added to g. The lanes of a row
// share its coordinates, at most four each, and the components: each goes through some of them, and rescales its sums
// where one is larger than all before.
template <class T>
__device__ __noinline__ double add_mixture(LoopDensity<T> density, RowGroup group, int x, int dim, int stride, int rows,
                                           T factor, int g) {
    constexpr int most = 4;
    int lanes = 1;
    while (lanes < group.lanes && most * lanes < dim) lanes *= 2;
    const int K = int(density.count), lane = group.lane & (lanes - 1), share = group.lane / lanes;
    const int shares = group.lanes / lanes;
    double total = 0;
    group.together(rows, [&](int r, bool there) {
        const T* at = shared_memory<T>() + x + (there ? r : 0) * stride;
        T here[most], pull[most] = {}, largest = -infinity<T>(), sum = 0;
        GWF_UNROLL_ALL
        for (int j = 0; j < most; j++) here[j] = lane + j * lanes < dim ? at[lane + j * lanes] : T(0);
        for (int start = 0; start < K; start += shares) {  // whole warps: they exchange sums
            const bool mine = start + share < K;
            const int k = mine ? start + share : 0;
            T step[most], squares = 0;
            GWF_UNROLL_ALL
            for (int j = 0; j < most; j++) {
                const int d = lane + j * lanes;
                step[j] = d < dim ? __ldg(density.points + std::int64_t(k) * dim + d) - here[j] : T(0);
                squares += step[j] * step[j];
            }
            for (int bit = 1; bit < lanes; bit *= 2) squares += exchanged(squares, bit);
            if (!mine) continue;
            const T precision = __ldg(density.precision + k);
            const T value = __ldg(density.log_weights + k) - squares * precision / 2;
            T weight = T(1);
            if (value > largest) {
                const T shrunk = exp_of(largest - value);
                sum = sum * shrunk + T(1);
                GWF_UNROLL_ALL
                for (int j = 0; j < most; j++) pull[j] *= shrunk;
                largest = value;
            } else {
                weight = exp_of(value - largest);
                sum += weight;
            }
            GWF_UNROLL_ALL
            for (int j = 0; j < most; j++) pull[j] += weight * precision * step[j];
        }
        T all = largest;
        for (int bit = lanes; bit < group.lanes; bit *= 2) all = larger(all, exchanged(all, bit));
        const T shrunk = share < K ? exp_of(largest - all) : T(0);
        sum *= shrunk;
        for (int bit = lanes; bit < group.lanes; bit *= 2) sum += exchanged(sum, bit);
        GWF_UNROLL_ALL
        for (int j = 0; j < most; j++) {
            if (j * lanes >= dim) break;
            pull[j] *= shrunk;
            for (int bit = lanes; bit < group.lanes; bit *= 2) pull[j] += exchanged(pull[j], bit);
            if (there && share == 0 && lane + j * lanes < dim)
                shared_memory<T>()[g + r * stride + lane + j * lanes] += pull[j] * factor / sum;
        }
        if (there && group.lane == 0) total += double(all) + log(double(sum));
    });
    return total;
}

// x = (weights w, log a): see gwf_fast.potentials.BayesianLogisticRegression. The data go through shared memory a block
// at a time, as the weights of a layer whose products are the margins.
template <class P, class T> __device__ __noinline__ double add_logistic(Block<T> block, int place, int rows, T factor) {
    T *g = block.memory() + block.a.layout.cotangents, *sums = block.memory() + block.a.layout.spare;
    const T* x = block.memory() + place;
    const LoopDensity<T>& density = block.a.density;
    const RowGroup group = block.rows;
    const int dim = block.a.dim, n = dim - 1, stride = padded(dim);
    T *data = block.memory() + block.a.layout.data, *margins = block.memory() + block.a.layout.margins;
    double total = 0;
    group.each(rows, n, [&](int r, int c) { sums[r * stride + c] = T(0); });
    for (std::int64_t start = 0; start < density.count; start += data_block) {
        const int count = int(density.count - start < data_block ? density.count - start : data_block);
        for (int i = int(threadIdx.x); i < data_block * stride; i += int(blockDim.x)) {
            const int s = i / stride, c = i % stride;
            data[i] = s < count && c < n ? density.points[(start + s) * n + c] : T(0);
        }
        __syncthreads();
        StoreForward<T> forward{
            margins, margins, margins, false, false, data_block, rows, data_block, Function::identity, T(0)};
        multiply_forward<P>(group, x, stride, data, dim, forward);
        P::sync();
        group.each(rows, data_block, [&](int r, int c) {
            T& margin = margins[r * data_block + c];
            const Jet<T> jet = evaluate<Function::log_sigmoid>(margin, T(0));
            if (c < count) total += double(jet.value);
            margin = c < count ? jet.first : T(0);
        });
        P::sync();
        StoreBackward<T> back{sums, sums, stride, rows, n, Store::sum, Function::identity, T(0), T(0)};
        multiply_backward<P>(group, margins, data_block, data, stride, data_block, back);
        __syncthreads();
    }
    const double constant = log(density.number) - double(n) / 2 * 1.8378770664093453;
    group.each_row(rows, [&](int r) {
        const T *point = x + r * stride, log_a = point[n], a = exp_of(log_a);
        T *to = g + r * stride, squares = 0;
        for (int c = 0; c < n; c++) {
            squares += point[c] * point[c];
            to[c] += factor * (sums[r * stride + c] - a * point[c]);
        }
        to[n] += factor * (T(n) / 2 - a * squares / 2 - T(density.number) * a + 1);
        total += constant - double(a) * (double(squares) / 2 + density.number) + (double(n) / 2 + 1) * double(log_a);
    });
    P::sync();
    return total;
}

}  // namespace gwf::gpu
