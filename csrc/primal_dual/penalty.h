// The gradient in the parameters of <t, grad h(x)> with t fixed, for a critic whose units are all leaky: half the
// products that other functions need (mlp/tile.h), since their second derivatives are 0.
//
// Back: u_l the cotangent of a_(l+1), d_l = u_l f'(z_l), to grad h = d_0 W_0. Forth: a' = t, z'_l = a'_l W'_l,
// a'_(l+1) = f'(z_l) z'_l. Then dW_l = d_l' a'_l, and a slope's derivative is the sum of u_l z'_l where z_l <= 0.
#pragma once
#include "primal_dual/tile.h"

namespace gwf::GWF_ISA {

// The product is a cotangent of a = f(z); that of z goes to d.
template <class T> struct LeakyCotangent {
    const T* a;
    T* d;
    int64_t stride;
    vec<T> slope;

    template <int MR, int NV, int known>
    GWF_INLINE void finish(const vec<T> (&sum)[MR][NV], int64_t i, int64_t j) const {
        const int64_t step = known ? known : stride;
#pragma GCC unroll 32
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 32
            for (int n = 0; n < NV; n++) {
                const int64_t at = i * step + j + (r * step + n * lanes<T>);
                store(d + at, load(a + at) > vec<T>{} ? sum[r][n] : vec<T>(sum[r][n] * slope));
            }
    }
};

// The product is a tangent of z; that of f(z) overwrites a = f(z). d holds the cotangent of z.
template <class T> struct LeakyTangent {
    T* a;
    const T* d;
    int64_t stride;
    vec<T> slope;
    vec<T> slope_sum;  // times the slope

    template <int MR, int NV, int known> GWF_INLINE void finish(const vec<T> (&sum)[MR][NV], int64_t i, int64_t j) {
        const int64_t step = known ? known : stride;
#pragma GCC unroll 32
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 32
            for (int n = 0; n < NV; n++) {
                const int64_t at = i * step + j + (r * step + n * lanes<T>);
                const vec<T> v = load(a + at);
                slope_sum += v > vec<T>{} ? vec<T>{} : vec<T>(sum[r][n] * load(d + at));
                store(a + at, v > vec<T>{} ? sum[r][n] : vec<T>(sum[r][n] * slope));
            }
    }
};

template <class T> struct LeakyPenalty {
    const TrainedNetwork<T>& net;
    const NetworkBuffers<T>& buffers;  // a: activations, then their tangents; z: cotangents of the products

    static bool serves(const TrainedNetwork<T>& net) {
        for (size_t l = 0; l + 1 < net.layers.size(); l++)
            if (!keeps_sign(net.layers[l])) return false;
        return net.layers.size() > 1;
    }

    // g [rows][in_stride] = grad h(x)
    void gradient(const T* x, int64_t rows, T* g) const {
        forward_hidden(net, x, rows, buffers);
        const auto& end = net.layers.back();
        const auto& top = net.layers[net.layers.size() - 2];
        const T *w = end.parameters.backward, *a = buffers.a[net.layers.size() - 2];
        T* d = buffers.z[net.layers.size() - 2];
        for (int64_t c = 0; c < end.in_padded; c += lanes<T>) {
            const vec<T> above = load(w + c), below = above * top.constant;
            for (int64_t r = 0; r < rows; r++) {
                const int64_t at = r * end.in_stride + c;
                store(d + at, load(a + at) > vec<T>{} ? above : below);
            }
        }
        for (size_t l = net.layers.size() - 2; l > 0; l--) {
            const auto& layer = net.layers[l];
            LeakyCotangent<T> epilogue{buffers.a[l - 1], buffers.z[l - 1], layer.in_stride,
                                       splat(net.layers[l - 1].constant)};
            multiply_into<false>(epilogue, buffers.z[l], layer.out_stride, layer.parameters.backward, layer.in_stride,
                                 layer.out, rows, layer.in_padded);
        }
        const auto& first = net.layers.front();
        multiply<false>(buffers.z[0], first.out_stride, first.parameters.backward, first.in_stride, first.out, g,
                        first.in_stride, rows, first.in_padded);
    }

    // After gradient(): what <t, grad h> adds to the gradient sums; t [rows][in_stride].
    void add(const T* t, int64_t rows, T* sums) const {
        for (size_t l = 0; l + 1 < net.layers.size(); l++) {
            const auto& layer = net.layers[l];
            const GradientSums<T> to = layer.sums(sums);
            add_weight_gradient(layer, t, buffers.z[l], rows, to.weight);
            LeakyTangent<T> epilogue{buffers.a[l], buffers.z[l], layer.out_stride, splat(layer.constant), vec<T>{}};
            multiply_into<false>(epilogue, t, layer.in_stride, layer.parameters.forward, layer.out_stride, layer.in,
                                 rows, layer.out_padded);
            if (layer.learned_slope) store(to.slope, vec<T>(load(to.slope) + epilogue.slope_sum / layer.constant));
            t = buffers.a[l];
        }
        const auto& end = net.layers.back();
        T* weight = end.sums(sums).weight;
        for (int64_t c = 0; c < end.in_padded; c += lanes<T>) {
            vec<T> sum = load(weight + c);
            for (int64_t r = 0; r < rows; r++) sum += load(t + r * end.in_stride + c);
            store(weight + c, sum);
        }
    }
};

}  // namespace gwf::GWF_ISA
