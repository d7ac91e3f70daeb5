// Densities with closed forms, and affine maps, on a tile of rows in shared memory [rows][stride].
#pragma once
#include "primal_dual_network.h"

namespace gwf::gpu {

// to = matrix x + shift, for rows that end in a one.
template <class T>
__device__ void apply_affine(const Block<T>& block, const LoopAffine& affine, const T* x, int rows, T* to) {
    const int dim = block.a.dim, stride = padded(dim);
    multiply_forward(x, stride, block.weights(affine.resident, affine.at, in_fours(dim) * stride), dim,
                     StoreForward<T>{nullptr, to, nullptr, stride, rows, dim, Function::identity, T(0)});
    __syncthreads();
}

// A cotangent u of its value to one of x, stored or added.
template <class T>
__device__ void pull_back_affine(const Block<T>& block, const LoopAffine& affine, const T* u, int rows, T* to,
                                 Store store) {
    const int dim = block.a.dim, stride = padded(dim);
    multiply_backward(u, stride, block.weights(affine.resident, affine.at, in_fours(dim) * stride), stride, dim,
                      StoreBackward<T>{to, nullptr, stride, rows, dim, store, Function::identity, T(0), T(0)});
    __syncthreads();
}

// The sum of -v^2 / 2 over the numbers of rows, shared by the threads; with `change`, each becomes factor times v.
template <class T> __device__ double half_squares(T* v, int dim, int rows, bool change, T factor) {
    double sum = 0;
    for (int i = int(threadIdx.x); i < rows * dim; i += int(blockDim.x)) {
        T& at = v[i / dim * padded(dim) + i % dim];
        sum -= double(at) * double(at) / 2;
        if (change) at *= factor;
    }
    return sum;
}

// A row is a group of lanes, which share its coordinates. The sum of log Q over the rows is shared by the threads;
// factor times the gradient is added to g.
template <class T>
__device__ __noinline__ double add_mixture(const Density<T>& density, const T* x, int dim, int stride, int rows,
                                           T factor, T* g) {
    const int K = int(density.count);
    int lanes = 1;
    while (lanes < 32 && 4 * lanes < dim) lanes *= 2;
    const int lane = int(threadIdx.x) % lanes, groups = int(blockDim.x) / lanes;
    auto term = [&](const T* at, int k) {  // log of weight times density, up to the norm
        T squares = 0;
        for (int d = lane; d < dim; d += lanes) {
            const T step = at[d] - density.points[std::int64_t(k) * dim + d];
            squares += step * step;
        }
        for (int bit = 1; bit < lanes; bit *= 2) squares += exchanged(squares, bit);
        return density.log_weights[k] - squares * density.precision[k] / 2;
    };
    double total = 0;
    for (int start = 0; start < rows; start += groups) {
        const int r = start + int(threadIdx.x) / lanes;
        const bool there = r < rows;
        const T* at = x + (there ? r : 0) * stride;
        T largest = term(at, 0), sum = 1;
        for (int k = 1; k < K; k++) {
            const T value = term(at, k);
            if (value > largest) {
                sum = sum * exp_of(largest - value) + T(1);
                largest = value;
            } else {
                sum += exp_of(value - largest);
            }
        }
        if (there && lane == 0) total += double(largest) + log(double(sum));
        for (int k = 0; k < K; k++) {
            const T weight = factor * exp_of(term(at, k) - largest) / sum * density.precision[k];
            if (!there) continue;
            for (int d = lane; d < dim; d += lanes)
                g[r * stride + d] += (density.points[std::int64_t(k) * dim + d] - at[d]) * weight;
        }
    }
    return total;
}

// x = (weights w, log a): see gwf_fast.potentials.BayesianLogisticRegression. The data go through shared memory a block
// at a time, as the weights of a layer whose products are the margins; `sums` is for their gradient.
template <class T>
__device__ __noinline__ double add_logistic(const Block<T>& block, const T* x, int rows, T factor, T* g, T* sums) {
    const Density<T>& density = block.a.density;
    const int dim = block.a.dim, n = dim - 1, stride = padded(dim), thread = int(threadIdx.x), step = int(blockDim.x);
    T *data = block.memory + block.a.layout.data, *margins = block.memory + block.a.layout.margins;
    double total = 0;
    for (int i = thread; i < rows * n; i += step) sums[i / n * stride + i % n] = T(0);
    for (std::int64_t start = 0; start < density.count; start += data_block) {
        const int count = int(density.count - start < data_block ? density.count - start : data_block);
        for (int i = thread; i < data_block * stride; i += step) {
            const int s = i / stride, c = i % stride;
            data[i] = s < count && c < n ? density.points[(start + s) * n + c] : T(0);
        }
        __syncthreads();
        multiply_forward(
            x, stride, data, dim,
            StoreForward<T>{nullptr, margins, nullptr, data_block, rows, data_block, Function::identity, T(0)});
        __syncthreads();
        for (int i = thread; i < rows * data_block; i += step) {
            const bool there = i % data_block < count;
            const Jet<T> jet = evaluate<Function::log_sigmoid>(margins[i], T(0));
            if (there) total += double(jet.value);
            margins[i] = there ? jet.first : T(0);
        }
        __syncthreads();
        multiply_backward(margins, data_block, data, stride, data_block,
                          StoreBackward<T>{sums, nullptr, stride, rows, n, Store::sum, Function::identity, T(0), T(0)});
        __syncthreads();
    }
    const double constant = log(density.rate) - double(n) / 2 * 1.8378770664093453;
    for (int r = thread; r < rows; r += step) {
        const T *point = x + r * stride, log_a = point[n], a = exp_of(log_a);
        T *to = g + r * stride, squares = 0;
        for (int c = 0; c < n; c++) {
            squares += point[c] * point[c];
            to[c] += factor * (sums[r * stride + c] - a * point[c]);
        }
        to[n] += factor * (T(n) / 2 - a * squares / 2 - T(density.rate) * a + 1);
        total += constant - double(a) * (double(squares) / 2 + density.rate) + (double(n) / 2 + 1) * double(log_a);
    }
    __syncthreads();
    return total;
}

}  // namespace gwf::gpu
