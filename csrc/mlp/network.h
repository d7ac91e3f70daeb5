// A network ready to run: weights packed in both orientations with rows padded to whole vectors, and where the gradient
// of each layer goes.
#pragma once
#include "memory.h"
#include "mlp/gemm.h"
#include "mlp/mlp.h"
#include "simd/vector.h"

namespace gwf::GWF_ISA {

template <class T> GWF_INLINE int64_t padded_to_lanes(int64_t n) { return (n + lanes<T> - 1) / lanes<T> * lanes<T>; }

// From one row to the next. Rows that are a multiple of 512 bytes apart would share a few sets of the cache.
template <class T> GWF_INLINE int64_t row_stride(int64_t n) {
    const int64_t padded = padded_to_lanes<T>(n);
    return padded * int64_t(sizeof(T)) % 1024 == 0 ? padded + 64 / int64_t(sizeof(T)) : padded;
}

// [rows][stride] to [columns][to_stride]; what is beyond the rows stays.
template <class T>
void transpose(const T* from, int64_t rows, int64_t columns, int64_t stride, T* to, int64_t to_stride) {
    constexpr int64_t block = 16;  // a block of cache lines on either side
    for (int64_t i = 0; i < rows; i += block)
        for (int64_t j = 0; j < columns; j++)
            for (int64_t r = i; r < std::min(rows, i + block); r++) to[j * to_stride + r] = from[r * stride + j];
}

template <class T> struct PackedArrays {
    const T* forward;   // [in][out_stride], null = zero (tangents only)
    const T* backward;  // [out][in_stride]
    const T* bias;      // [out_padded]
    T slope;
};

// The sums over rows that make the gradient of one layer.
template <class T> struct GradientSums {
    T *weight, *bias, *slope;  // [in][out_stride] or [out][in_stride]; [out_padded]; [lanes]
};

template <class T> struct PackedLayer {
    int64_t in, out, in_padded, out_padded, in_stride, out_stride;
    Function function;
    T constant;
    bool learned_slope;
    bool lanes_are_outputs;  // of the weight gradient: whichever wastes less padding
    PackedArrays<T> parameters, tangents;
    int64_t gradient_offset;

    int64_t weight_sums() const { return lanes_are_outputs ? in * out_stride : out * in_stride; }
    int64_t gradient_size() const { return weight_sums() + out_padded + lanes<T>; }
    GradientSums<T> sums(T* memory) const {
        T* start = memory + gradient_offset;
        return {start, start + weight_sums(), start + weight_sums() + out_padded};
    }
};

// Sizes and strides; no weights yet.
template <class T> PackedLayer<T> packed_shape(const MlpLayer& shape, bool learned_slope) {
    PackedLayer<T> layer{};
    layer.in = shape.in;
    layer.out = shape.out;
    layer.in_padded = padded_to_lanes<T>(shape.in);
    layer.out_padded = padded_to_lanes<T>(shape.out);
    layer.in_stride = row_stride<T>(shape.in);
    layer.out_stride = row_stride<T>(shape.out);
    layer.function = shape.function;
    layer.constant = T(shape.constant);
    layer.learned_slope = learned_slope;
    layer.lanes_are_outputs = layer.in * layer.out_padded <= layer.out * layer.in_padded;
    return layer;
}

// dW += d' a for the tile's rows, the layer's inputs a and the cotangents d of its products.
template <class T>
void add_weight_gradient(const PackedLayer<T>& layer, const T* a, const T* d, int64_t rows, T* sums) {
    const int64_t P = layer.out_stride, Q = layer.in_stride;
    if (layer.lanes_are_outputs)
        multiply<true>(a, Q, d, P, rows, sums, P, layer.in, layer.out_padded, nullptr, true);
    else
        multiply<true>(d, P, a, Q, rows, sums, Q, layer.out, layer.in_padded, nullptr, true);
}

template <class T> class Network {
  public:
    explicit Network(const MlpCall<T>& call) : arena_(size_of(call)) {
        for (size_t l = 0; l < call.layers.size(); l++) {
            const MlpLayer& shape = call.layers[l];
            PackedLayer<T> layer = packed_shape<T>(shape, call.parameters[l].slope != nullptr);
            layer.parameters = pack(layer, call.parameters[l], call.pass != MlpPass::forward);
            layer.constant = layer.learned_slope ? layer.parameters.slope : T(shape.constant);
            if (call.pass == MlpPass::second) layer.tangents = pack(layer, call.tangents[l], true);
            layer.gradient_offset = gradient_size;
            gradient_size += layer.gradient_size();
            multiplications += layer.in * layer.out;
            layers.push_back(layer);
        }
    }

    std::vector<PackedLayer<T>> layers;
    int64_t gradient_size = 0;
    int64_t multiplications = 0;  // of one row, forward

  private:
    static int64_t size_of(const MlpCall<T>& call) {
        int64_t size = 0;
        for (const MlpLayer& layer : call.layers)
            size += layer.in * row_stride<T>(layer.out) + layer.out * row_stride<T>(layer.in) +
                    padded_to_lanes<T>(layer.out) + 3 * 16;
        return 2 * size;
    }

    PackedArrays<T> pack(const PackedLayer<T>& layer, const MlpArrays<const T>& arrays, bool both) {
        PackedArrays<T> packed{};
        if (arrays.weight) {
            T* to = arena_.take(layer.in * layer.out_stride);
            transpose(arrays.weight, layer.out, layer.in, layer.in, to, layer.out_stride);
            for (int64_t i = 0; i < layer.in; i++)
                std::fill_n(to + i * layer.out_stride + layer.out, layer.out_stride - layer.out, T(0));
            packed.forward = to;
            if (both) packed.backward = with_padding(arrays.weight, layer.out, layer.in, layer.in_stride);
        }
        if (arrays.bias) packed.bias = with_padding(arrays.bias, 1, layer.out, layer.out_padded);
        if (arrays.slope) packed.slope = *arrays.slope;
        return packed;
    }

    const T* with_padding(const T* from, int64_t rows, int64_t columns, int64_t stride) {
        T* to = arena_.take(rows * stride);
        for (int64_t i = 0; i < rows; i++) {
            std::copy_n(from + i * columns, columns, to + i * stride);
            std::fill_n(to + i * stride + columns, stride - columns, T(0));
        }
        return to;
    }

    Arena<T> arena_;
};

}  // namespace gwf::GWF_ISA
