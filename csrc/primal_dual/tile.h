// One tile of rows through a network in training and back. Between the passes, buffers.kept(l) holds the layer's
// product, or its sign, then its cotangent.
#pragma once
#include "primal_dual/network.h"
#include "random/philox.h"

namespace gwf::GWF_ISA {

// Which hidden units of which rows are dropped: element row * width + unit of the stream of a layer.
struct Dropout {
    double rate = 0;
    uint64_t seed = 0;
    uint32_t iteration = 0, stream = 0;  // the layer is added to the stream
    int64_t first_row = 0;

    // to [rows][stride]: 0 where a unit is dropped, 1 / (1 - rate) elsewhere
    template <class T> void mask(uint32_t layer, int64_t rows, int64_t width, int64_t stride, T* to) const {
        constexpr int64_t group = 4 * philox_lanes;
        const int64_t begin = first_row * width, end = begin + rows * width;
        // words whose uniform is less than the rate
        const auto below = uint32_t(std::min(std::ceil(rate * 0x1p32 - 0.5), 0x1p32 - 1));
        const T kept = T(1 / (1 - rate));
        int64_t row = 0, unit = 0;
        for (int64_t g = begin / group; g * group < end; g++) {
            const PhiloxBlocks b = philox(seed, iteration, stream | layer, uint64_t(g));
            alignas(64) T values[group];
            for (int w = 0; w < 4; w++)
                for (int l = 0; l < philox_lanes; l++)
                    values[w * philox_lanes + l] = b.word[w][l] < below ? T(0) : kept;
            int64_t k = std::max<int64_t>(0, begin - g * group);
            for (const int64_t stop = std::min(group, end - g * group); k < stop;) {
                const int64_t count = std::min(width - unit, stop - k);
                std::copy_n(values + k, count, to + row * stride + unit);
                k += count;
                unit += count;
                if (unit == width) unit = 0, row++;
            }
        }
    }
};

template <class T> struct NetworkBuffers {  // of one thread; [rows][out_stride] a layer
    std::vector<T*> z, a, mask;             // masks only where units are dropped; of the hidden layers
    Dropout dropout;

    static int64_t size(const TrainedNetwork<T>& net, int64_t rows, bool drops) {
        int64_t sum = 0;
        for (const auto& layer : net.layers) sum += (drops ? 3 : 2) * Arena<T>::rounded(rows * layer.out_stride);
        return sum;
    }
    void take(const TrainedNetwork<T>& net, int64_t rows, bool drops, T*& memory) {
        auto piece = [&](int64_t count) { return std::exchange(memory, memory + Arena<T>::rounded(count)); };
        for (const auto& layer : net.layers) {
            z.push_back(piece(rows * layer.out_stride));
            a.push_back(piece(rows * layer.out_stride));
            if (drops) mask.push_back(piece(rows * layer.out_stride));
        }
    }

    // Whether z of the hidden layer is not stored.
    bool in_place(const PackedLayer<T>& layer) const { return mask.empty() && keeps_sign(layer); }
    // What tells the derivative of the hidden layer's function.
    T* kept(size_t l, const PackedLayer<T>& layer) const { return in_place(layer) ? a[l] : z[l]; }

    // times the mask of layer l, drawn first
    void drop(size_t l, const PackedLayer<T>& layer, int64_t rows, T* values) const {
        dropout.mask(uint32_t(l), rows, layer.out, layer.out_stride, mask[l]);
        multiply_by_mask(l, layer, rows, values);
    }
    void multiply_by_mask(size_t l, const PackedLayer<T>& layer, int64_t rows, T* values) const {
        for (int64_t i = 0; i < rows * layer.out_stride; i += lanes<T>)
            store(values + i, vec<T>(load(values + i) * load(mask[l] + i)));
    }
};

template <Function f, class T> void apply_function(const T* z, T* a, int64_t count, T p) {
    for (int64_t i = 0; i < count; i += lanes<T>) store(a + i, evaluate<f>(load(z + i), p).value);
}

// All layers but the last; x [rows][in_stride]. Returns what the last one is given.
template <class T>
const T* forward_hidden(const TrainedNetwork<T>& net, const T* x, int64_t rows, const NetworkBuffers<T>& buffers) {
    for (size_t l = 0; l + 1 < net.layers.size(); l++) {
        const auto& layer = net.layers[l];
        T *z = buffers.z[l], *a = buffers.a[l];
        const int64_t P = layer.out_stride;
        if (buffers.in_place(layer)) {
            LeakyForward<T> epilogue{a, P, splat(layer.constant)};
            multiply_into<false>(epilogue, x, layer.in_stride, layer.parameters.forward, P, layer.in, rows,
                                 layer.out_padded, layer.parameters.bias);
        } else {
            multiply<false>(x, layer.in_stride, layer.parameters.forward, P, layer.in, z, P, rows, layer.out_padded,
                            layer.parameters.bias);
            with_function<false>(layer.function, [&](auto f) { apply_function<f()>(z, a, rows * P, layer.constant); });
        }
        if (!buffers.mask.empty()) buffers.drop(l, layer, rows, a);
        x = a;
    }
    return x;
}

// z becomes u f'(z), the cotangent of the product; u(r, c) gives that of its function's value. Where z is that value
// itself, of leaky units, `of_value` is true.
template <Function f, bool gradients, class T, class Cotangent>
void differentiate(const PackedLayer<T>& layer, T* z, bool of_value, int64_t rows, T* sums, Cotangent&& u) {
    const bool slope = f == Function::leaky && gradients && layer.learned_slope;
    const T p = layer.constant, scale = of_value ? 1 / p : T(1);
    for (int64_t c = 0; c < layer.out_padded; c += lanes<T>) {
        vec<T> bias_sum{}, slope_sum{};
        for (int64_t r = 0; r < rows; r++) {
            T* at = z + r * layer.out_stride + c;
            const vec<T> v = load(at), g = u(r, c), d = g * evaluate<f>(v, p).first;
            if (slope) slope_sum += v > vec<T>{} ? vec<T>{} : vec<T>(g * v);
            bias_sum += d;
            store(at, d);
        }
        if (!gradients) continue;
        const GradientSums<T> to = layer.sums(sums);
        store(to.bias + c, vec<T>(load(to.bias + c) + bias_sum));
        if (slope) store(to.slope, vec<T>(load(to.slope) + slope_sum * scale));
    }
}

// From the cotangent d of layer l's product down to the first layer; dx [rows][in_stride] where it is wanted.
template <bool gradients, class T>
void backward_from(const TrainedNetwork<T>& net, size_t top, const T* d, const T* x, int64_t rows,
                   const NetworkBuffers<T>& buffers, T* sums, std::type_identity_t<T>* dx) {
    for (size_t l = top + 1; l-- > 0;) {
        const auto& layer = net.layers[l];
        const int64_t P = layer.out_stride, Q = layer.in_stride;
        if (gradients) add_weight_gradient(layer, l ? buffers.a[l - 1] : x, d, rows, layer.sums(sums).weight);
        if (l == 0) {
            if (dx) multiply<false>(d, P, layer.parameters.backward, Q, layer.out, dx, Q, rows, layer.in_padded);
            return;
        }
        const auto& below = net.layers[l - 1];
        T *z = buffers.kept(l - 1, below), *u = buffers.a[l - 1];  // the activations are not needed again
        if (buffers.in_place(below)) {
            const GradientSums<T> to = gradients ? below.sums(sums) : GradientSums<T>{};
            LeakyBackward<T, gradients> epilogue{z, Q, splat(below.constant), to.bias, vec<T>{}};
            multiply_into<false>(epilogue, d, P, layer.parameters.backward, Q, layer.out, rows, layer.in_padded);
            if (gradients && below.learned_slope)
                store(to.slope, vec<T>(load(to.slope) + epilogue.slope_sum / below.constant));
        } else {
            multiply<false>(d, P, layer.parameters.backward, Q, layer.out, u, Q, rows, layer.in_padded);
            if (!buffers.mask.empty()) buffers.multiply_by_mask(l - 1, below, rows, u);
            with_function<false>(below.function, [&](auto f) {
                differentiate<f(), gradients>(below, z, false, rows, sums,
                                              [&](int64_t r, int64_t c) { return load(u + r * Q + c); });
            });
        }
        d = z;
    }
}

template <int width, class V, int... i> GWF_INLINE V plus_rotated(V v, std::integer_sequence<int, i...>) {
    return v + __builtin_shufflevector(v, v, ((i + width) % int(sizeof...(i)))...);
}

template <class T> GWF_INLINE T tree_sum(vec<T> v) {  // in registers
    constexpr std::make_integer_sequence<int, lanes<T>> all;
    if constexpr (lanes<T> >= 16) v = plus_rotated<8>(v, all);
    if constexpr (lanes<T> >= 8) v = plus_rotated<4>(v, all);
    if constexpr (lanes<T> >= 4) v = plus_rotated<2>(v, all);
    return plus_rotated<1>(v, all)[0];
}

// A critic: one output a row.
template <class T> struct CriticPass {
    const TrainedNetwork<T>& net;
    const NetworkBuffers<T>& buffers;
    T *values, *cotangents;  // [rows, to whole vectors]

    // Sum of f over the outputs; the cotangents become weight f'.
    double forward(const T* x, int64_t rows, Elementwise f, double weight) const {
        const auto& layer = net.layers.back();
        const T *a = forward_hidden(net, x, rows, buffers), *w = layer.parameters.backward;  // [1][in_stride]
        for (int64_t r = 0; r < rows; r++) {
            vec<T> sum{};
            for (int64_t c = 0; c < layer.in_padded; c += lanes<T>)
                sum += load(a + r * layer.in_stride + c) * load(w + c);
            values[r] = tree_sum<T>(sum) + layer.parameters.bias[0];
        }
        std::fill(values + rows, values + padded_to_lanes<T>(rows), T(0));
        with_function(f.function, [&](auto function) {
            for (int64_t r = 0; r < rows; r += lanes<T>) {
                const auto jet = evaluate<function()>(load(values + r), T(f.constant));
                store(values + r, jet.value);
                store(cotangents + r, vec<T>(jet.first * T(weight)));
            }
        });
        double totals[4] = {};  // the latency of one sum would show
        for (int64_t r = 0; r < rows; r++) totals[r % 4] += double(values[r]);
        return (totals[0] + totals[1]) + (totals[2] + totals[3]);
    }

    template <bool gradients> void backward(const T* x, int64_t rows, T* sums, T* dx) const {
        const size_t last = net.layers.size() - 1;
        const auto& layer = net.layers[last];
        const T *w = layer.parameters.backward, *d = cotangents;
        const int64_t Q = layer.in_stride;
        if (gradients) {
            const GradientSums<T> to = layer.sums(sums);
            const T* a = last ? buffers.a[last - 1] : x;
            for (int64_t c = 0; c < layer.in_padded; c += lanes<T>) {
                vec<T> sum{};
                for (int64_t r = 0; r < rows; r++) sum += splat(d[r]) * load(a + r * Q + c);
                store(to.weight + c, vec<T>(load(to.weight + c) + sum));
            }
            T sum = 0;
            for (int64_t r = 0; r < rows; r++) sum += d[r];
            to.bias[0] += sum;
        }
        auto cotangent = [&](int64_t r, int64_t c) { return vec<T>(splat(d[r]) * load(w + c)); };
        if (last) {
            const auto& below = net.layers[last - 1];
            T* z = buffers.kept(last - 1, below);
            with_function<false>(below.function, [&](auto f) {
                if (buffers.mask.empty()) {
                    differentiate<f(), gradients>(below, z, buffers.in_place(below), rows, sums, cotangent);
                } else {
                    const T* mask = buffers.mask[last - 1];
                    auto masked = [&](int64_t r, int64_t c) {
                        return vec<T>(cotangent(r, c) * load(mask + r * Q + c));
                    };
                    differentiate<f(), gradients>(below, z, false, rows, sums, masked);
                }
            });
            backward_from<gradients>(net, last - 1, z, x, rows, buffers, sums, dx);
        } else if (dx) {
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < layer.in_padded; c += lanes<T>) store(dx + r * Q + c, cotangent(r, c));
        }
    }
};

// A map; where it adds its input, with as many outputs as inputs.
template <class T> struct MapPass {
    const TrainedNetwork<T>& net;
    const NetworkBuffers<T>& buffers;

    // y [rows][stride of its outputs] = T(x)
    void forward(const T* x, int64_t rows, T* y) const {
        const auto& layer = net.layers.back();
        const int64_t P = layer.out_stride;
        const T* a = forward_hidden(net, x, rows, buffers);
        T* z = buffers.z.back();
        multiply<false>(a, layer.in_stride, layer.parameters.forward, P, layer.in, z, P, rows, layer.out_padded,
                        layer.parameters.bias);
        with_function<false>(layer.function, [&](auto f) { apply_function<f()>(z, y, rows * P, layer.constant); });
        // f(0) may be anything, and the padding must stay zero
        for (int64_t r = 0; r < rows; r++) std::fill(y + r * P + layer.out, y + (r + 1) * P, T(0));
        if (net.residual())
            for (int64_t i = 0; i < rows * P; i += lanes<T>) store(y + i, vec<T>(load(y + i) + load(x + i)));
    }

    // g: the cotangent of T(x)
    void backward(const T* x, const T* g, int64_t rows, T* sums) const {
        const auto& layer = net.layers.back();
        T* z = buffers.z.back();
        with_function<false>(layer.function, [&](auto f) {
            differentiate<f(), true>(layer, z, false, rows, sums,
                                     [&](int64_t r, int64_t c) { return load(g + r * layer.out_stride + c); });
        });
        backward_from<true>(net, net.layers.size() - 1, z, x, rows, buffers, sums, nullptr);
    }
};

}  // namespace gwf::GWF_ISA
