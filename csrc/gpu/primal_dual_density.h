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

}  // namespace gwf::gpu
