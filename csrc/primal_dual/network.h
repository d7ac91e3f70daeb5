// A network that is being trained: parameters and Adam's moments stay in the layout of the tiles, which write their
// gradients in it too, so that an update is one sweep over flat arrays.
#pragma once
#include "mlp/functions.h"
#include "mlp/network.h"
#include "primal_dual/adam.h"
#include "primal_dual/primal_dual.h"

namespace gwf::GWF_ISA {

// Leaky units with a slope of which the sign of a = f(z) tells that of z: only a is stored, and z = a / slope below 0.
template <class T> bool keeps_sign(const PackedLayer<T>& layer) {
    return layer.function == Function::leaky &&
           layer.constant >= (layer.learned_slope ? std::numeric_limits<T>::epsilon() : T(0));
}

// Leaky unit: a = f(z) in one go with the product.
template <class T> struct LeakyForward {
    T* a;
    int64_t stride;
    vec<T> slope;

    template <int MR, int NV, int known>
    GWF_INLINE void finish(const vec<T> (&sum)[MR][NV], int64_t i, int64_t j) const {
        const int64_t step = known ? known : stride;
#pragma GCC unroll 32
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 32
            for (int n = 0; n < NV; n++)
                store(a + i * step + j + (r * step + n * lanes<T>),
                      sum[r][n] > vec<T>{} ? sum[r][n] : vec<T>(sum[r][n] * slope));
    }
};

// The product is the cotangent of a, which is overwritten by that of z.
template <class T, bool gradients> struct LeakyBackward {
    T* a;
    int64_t stride;
    vec<T> slope;
    T* bias_sums;
    vec<T> slope_sum;  // times the slope

    template <int MR, int NV, int known> GWF_INLINE void finish(const vec<T> (&sum)[MR][NV], int64_t i, int64_t j) {
        const int64_t step = known ? known : stride;
#pragma GCC unroll 32
        for (int n = 0; n < NV; n++) {
            vec<T> bias_sum{};
#pragma GCC unroll 32
            for (int r = 0; r < MR; r++) {
                T* at = a + i * step + j + (r * step + n * lanes<T>);
                const vec<T> v = load(at), u = sum[r][n], d = v > vec<T>{} ? u : vec<T>(u * slope);
                if constexpr (gradients) {
                    slope_sum += u * smaller(vec<T>{}, v);
                    bias_sum += d;
                }
                store(at, d);
            }
            if constexpr (gradients) {
                T* sums = bias_sums + j + n * lanes<T>;
                store(sums, vec<T>(load(sums) + bias_sum));
            }
        }
    }
};

template <class T> class TrainedNetwork {
  public:
    explicit TrainedNetwork(const TrainedArrays<T>& arrays) : arrays_(arrays), steps_(arrays.steps) {
        int64_t copies = 0;
        for (size_t l = 0; l < arrays.layers.size(); l++) {
            PackedLayer<T> layer = packed_shape<T>(arrays.layers[l], arrays.parameters[l].slope != nullptr);
            layer.gradient_offset = size;
            size += layer.gradient_size();
            copy_offsets_.push_back(copies);
            copies += std::max(layer.in * layer.out_stride, layer.out * layer.in_stride);
            layers.push_back(layer);
        }
        for (auto* flat : {&values_, &first_, &second_, &average_}) *flat = AlignedArray<T>(size);
        copies_ = AlignedArray<T>(copies);
        each([&](size_t l, GradientSums<T> at) { read(l, arrays.parameters[l], at); }, values_.data());
        each([&](size_t l, GradientSums<T> at) { read(l, arrays.first_moments[l], at); }, first_.data());
        each([&](size_t l, GradientSums<T> at) { read(l, arrays.second_moments[l], at); }, second_.data());
        std::copy_n(values_.data(), size, average_.data());
        refresh();
    }

    std::vector<PackedLayer<T>> layers;
    int64_t size = 0;  // of a flat array: parameters, gradients, moments

    // What Adam makes of gradient sums; they are added in this order, whoever made them.
    void update(const std::vector<T*>& sums, double rate, const AdamSettings& adam) {
        T* g = sums[0];
        for (size_t c = 1; c < sums.size(); c++)
            for (int64_t i = 0; i < size; i += lanes<T>) store(g + i, vec<T>(load(g + i) + load(sums[c] + i)));
        each([&](size_t l, GradientSums<T> at) { tidy(layers[l], at); }, g);
        const T scale = adam.clip > 0 ? T(clip_factor(adam.clip, std::sqrt(squared_norm(g)))) : T(1);
        steps_++;
        const AdamStep<T> adam_step(adam, rate, std::pow(adam.beta1, double(steps_)),
                                    std::pow(adam.beta2, double(steps_)));
        T *p = values_.data(), *m = first_.data(), *v = second_.data();
        for (int64_t i = 0; i < size; i += lanes<T>) {
            vec<T> m1 = load(m + i), v1 = load(v + i), p1 = load(p + i);
            adam_step.update(vec<T>(load(g + i) * scale), m1, v1, p1);
            store(m + i, m1);
            store(v + i, v1);
            store(p + i, p1);
        }
        if (adam.average > 0)
            for (int64_t i = 0; i < size; i++) average_.data()[i] += T(1 - adam.average) * (p[i] - average_.data()[i]);
        refresh();
    }

    void write_back(bool averaged) {
        each([&](size_t l, GradientSums<T> at) { write(l, arrays_.parameters[l], at); },
             averaged ? average_.data() : values_.data());
        each([&](size_t l, GradientSums<T> at) { write(l, arrays_.first_moments[l], at); }, first_.data());
        each([&](size_t l, GradientSums<T> at) { write(l, arrays_.second_moments[l], at); }, second_.data());
    }

    bool residual() const { return arrays_.residual; }
    double rate() const { return arrays_.rate; }

    int64_t multiplications() const {  // of one row, forward
        int64_t sum = 0;
        for (const auto& layer : layers) sum += layer.in * layer.out;
        return sum;
    }

  private:
    template <class Body> void each(Body&& body, T* flat) {
        for (size_t l = 0; l < layers.size(); l++) body(l, layers[l].sums(flat));
    }

    // Element (output, input) of a weight in its flat array.
    static int64_t place(const PackedLayer<T>& layer, int64_t o, int64_t i) {
        return layer.lanes_are_outputs ? i * layer.out_stride + o : o * layer.in_stride + i;
    }

    void read(size_t l, const MlpArrays<T>& from, GradientSums<T> to) const {
        const auto& layer = layers[l];
        for (int64_t o = 0; o < layer.out; o++)
            for (int64_t i = 0; i < layer.in; i++) to.weight[place(layer, o, i)] = from.weight[o * layer.in + i];
        std::copy_n(from.bias, layer.out, to.bias);
        if (layer.learned_slope) std::fill_n(to.slope, lanes<T>, *from.slope);
    }

    void write(size_t l, const MlpArrays<T>& to, GradientSums<T> from) const {
        const auto& layer = layers[l];
        for (int64_t o = 0; o < layer.out; o++)
            for (int64_t i = 0; i < layer.in; i++) to.weight[o * layer.in + i] = from.weight[place(layer, o, i)];
        std::copy_n(from.bias, layer.out, to.bias);
        if (layer.learned_slope) *to.slope = *from.slope;
    }

    // The padding must stay zero in the parameters, and so in the gradient: f(0) may be anything.
    static void tidy(const PackedLayer<T>& layer, GradientSums<T> at) {
        const int64_t rows = layer.lanes_are_outputs ? layer.in : layer.out;
        const int64_t used = layer.lanes_are_outputs ? layer.out : layer.in;
        const int64_t stride = layer.lanes_are_outputs ? layer.out_stride : layer.in_stride;
        if (used != stride)
            for (int64_t r = 0; r < rows; r++) std::fill_n(at.weight + r * stride + used, stride - used, T(0));
        std::fill_n(at.bias + layer.out, layer.out_padded - layer.out, T(0));
        std::fill_n(at.slope, lanes<T>, layer.learned_slope ? horizontal_sum<T>(load(at.slope)) : T(0));
    }

    double squared_norm(T* g) {
        double sum = 0;
        each(
            [&](size_t l, GradientSums<T> at) {
                for (const T* p = at.weight; p < at.slope; p++) sum += double(*p) * double(*p);
                if (layers[l].learned_slope) sum += double(*at.slope) * double(*at.slope);
            },
            g);
        return sum;
    }

    // The other orientation of the weights, and the slopes.
    void refresh() {
        for (size_t l = 0; l < layers.size(); l++) {
            auto& layer = layers[l];
            const GradientSums<T> at = layer.sums(values_.data());
            T* copy = copies_.data() + copy_offsets_[l];
            const int64_t rows = layer.lanes_are_outputs ? layer.in : layer.out;
            const int64_t columns = layer.lanes_are_outputs ? layer.out : layer.in;
            const int64_t stride = layer.lanes_are_outputs ? layer.out_stride : layer.in_stride;
            const int64_t other = layer.lanes_are_outputs ? layer.in_stride : layer.out_stride;
            transpose(at.weight, rows, columns, stride, copy, other);
            layer.parameters.forward = layer.lanes_are_outputs ? at.weight : copy;
            layer.parameters.backward = layer.lanes_are_outputs ? copy : at.weight;
            layer.parameters.bias = at.bias;
            layer.parameters.slope = *at.slope;
            if (layer.learned_slope) layer.constant = *at.slope;
        }
    }

    TrainedArrays<T> arrays_;
    int64_t steps_;
    std::vector<int64_t> copy_offsets_;
    AlignedArray<T> values_, first_, second_, average_, copies_;
};

}  // namespace gwf::GWF_ISA
