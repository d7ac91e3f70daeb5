// One tile of rows through the whole network, forward and back, while its activations stay in cache.
//
// Layer l:  z = a_l W' + b,  a_(l+1) = f(z).  Back, with u the cotangent of a_(l+1):  d = u f'(z),  dW = d' a_l,
// cotangent of a_l = d W.  The second pass carries tangents (names with a dot in front: dot_z, ...) through both ways.
// Why that is the derivative of a backward pass: <cx, dx> + <ct, dtheta> is the derivative of <g, f(x, theta)> along
// (cx, ct), so its gradient in g is the tangent of f, and its gradient in (x, theta) the tangent of the backward pass.
#pragma once
#include "mlp/functions.h"
#include "mlp/network.h"

namespace gwf::GWF_ISA {

// Buffers of one thread. [rows][stride] each.
template <class T> struct TileMemory {
    static constexpr int64_t budget = 384 * 1024;  // bytes of activations, which stay in the L2 cache
    static constexpr int64_t granule = 12;         // rows of the largest block of the product

    static int64_t rows_of(const MlpCall<T>& call) {
        int64_t sum = 0, widest = 0;
        for (const MlpLayer& layer : call.layers) {
            sum += row_stride<T>(layer.out);
            widest = std::max(widest, row_stride<T>(layer.out));
        }
        const int64_t buffers = call.pass == MlpPass::forward  ? 2 * widest
                                : call.pass == MlpPass::second ? 4 * sum
                                                               : 2 * sum;
        const int64_t rows = budget / int64_t(sizeof(T)) / buffers / granule * granule;
        // not fewer, however wide the network: each tile reads all weights
        return std::clamp<int64_t>(rows, 8 * granule, 12 * granule);
    }

    TileMemory(MlpPass pass, const std::vector<PackedLayer<T>>& layers, int64_t rows) : arena_(size_of(layers, rows)) {
        const bool keeps = pass != MlpPass::forward;
        int64_t widest = layers[0].in_stride;
        for (const auto& layer : layers) widest = std::max(widest, layer.out_stride);
        for (T*& buffer : spare) buffer = arena_.take(rows * widest);
        bias_sums = arena_.take(widest);
        std::fill_n(bias_sums, widest, T(0));
        a.push_back(arena_.take(rows * layers[0].in_stride));
        dot_a.push_back(arena_.take(rows * layers[0].in_stride));
        for (size_t l = 0; l < layers.size(); l++) {
            const int64_t size = rows * layers[l].out_stride;
            z.push_back(keeps ? arena_.take(size) : spare[l % 2]);
            a.push_back(keeps ? arena_.take(size) : z.back());  // in place where z is not needed again
            if (pass != MlpPass::second) continue;
            dot_z.push_back(arena_.take(size));
            dot_a.push_back(arena_.take(size));
        }
    }

    std::vector<T*> a, z, dot_a, dot_z;
    T* spare[4];
    T* bias_sums;  // where they are not wanted

  private:
    static int64_t size_of(const std::vector<PackedLayer<T>>& layers, int64_t rows) {
        int64_t sum = layers[0].in_stride * 2, widest = layers[0].in_stride;
        for (const auto& layer : layers) {
            sum += 4 * layer.out_stride;
            widest = std::max(widest, layer.out_stride);
        }
        return rows * (sum + 4 * widest) + widest + 16 * int64_t(4 * layers.size() + 8);
    }

    Arena<T> arena_;
};

template <class T> class Tile {
  public:
    Tile(MlpPass pass, bool residual, const std::vector<PackedLayer<T>>& layers, TileMemory<T>& memory,
         const MlpBatch<T>& batch)
        : pass_(pass), residual_(residual), layers_(layers), memory_(memory), batch_(batch) {}

    // sums: the gradient sums of this chunk, or null; total: sum of the outputs, or null.
    void run(int64_t first, int64_t rows, T* sums, double* total) {
        first_ = first;
        rows_ = rows;
        sums_ = sums;
        forward();
        if (pass_ != MlpPass::second) finish_forward(total);
        if (pass_ == MlpPass::second) forward_tangent();
        if (pass_ != MlpPass::forward) backward();
    }

  private:
    bool second() const { return pass_ == MlpPass::second; }
    size_t last() const { return layers_.size() - 1; }
    Function function(size_t l) const { return l == last() ? batch_.last : layers_[l].function; }
    T constant(size_t l) const { return l == last() ? T(batch_.last_constant) : layers_[l].constant; }

    // rows of a contiguous array into a padded buffer
    void gather(const T* from, int64_t width, T* to, int64_t stride) const {
        for (int64_t r = 0; r < rows_; r++) {
            if (from) std::copy_n(from + (first_ + r) * width, width, to + r * stride);
            std::fill_n(to + r * stride + (from ? width : 0), stride - (from ? width : 0), T(0));
        }
    }

    // and back, with an array of the same shape added where there is one
    void scatter(const T* from, int64_t stride, int64_t width, const T* added, T* to) const {
        for (int64_t r = 0; r < rows_; r++) {
            const T* source = from + r * stride;
            T* target = to + (first_ + r) * width;
            for (int64_t c = 0; c < width; c++)
                target[c] = source[c] + (added ? added[(first_ + r) * width + c] : T(0));
        }
    }

    void forward() {
        gather(batch_.x, layers_[0].in, memory_.a[0], layers_[0].in_stride);
        for (size_t l = 0; l <= last(); l++) {
            const auto& layer = layers_[l];
            T *z = memory_.z[l], *a = memory_.a[l + 1];
            multiply<false>(memory_.a[l], layer.in_stride, layer.parameters.forward, layer.out_stride, layer.in, z,
                            layer.out_stride, rows_, layer.out_padded, layer.parameters.bias);
            with_function(function(l), [&](auto f) { apply<f()>(z, a, rows_ * layer.out_stride, constant(l)); });
        }
    }

    template <Function f> static void apply(const T* z, T* a, int64_t count, T p) {
        for (int64_t i = 0; i < count; i += lanes<T>) store(a + i, evaluate<f>(load(z + i), p).value);
    }

    void finish_forward(double* total) const {
        const auto& layer = layers_.back();
        const T* result = memory_.a.back();
        if (batch_.out) scatter(result, layer.out_stride, layer.out, residual_ ? batch_.x : nullptr, batch_.out);
        if (!total) return;
        for (int64_t r = 0; r < rows_; r++)
            for (int64_t c = 0; c < layer.out; c++) *total += double(result[r * layer.out_stride + c]);
    }

    void forward_tangent() {
        gather(batch_.x_tangent, layers_[0].in, memory_.dot_a[0], layers_[0].in_stride);
        for (size_t l = 0; l <= last(); l++) {
            const auto& layer = layers_[l];
            const int64_t P = layer.out_stride;
            multiply<false>(memory_.dot_a[l], layer.in_stride, layer.parameters.forward, P, layer.in, memory_.dot_z[l],
                            P, rows_, layer.out_padded, layer.tangents.bias);
            if (layer.tangents.forward)
                multiply<false>(memory_.a[l], layer.in_stride, layer.tangents.forward, P, layer.in, memory_.dot_z[l], P,
                                rows_, layer.out_padded, nullptr, true);
            with_function<false>(function(l), [&](auto f) {
                apply_tangent<f()>(memory_.z[l], memory_.dot_z[l], memory_.dot_a[l + 1], rows_ * P, constant(l),
                                   layer.tangents.slope);
            });
        }
        if (batch_.out_tangent)
            scatter(memory_.dot_a.back(), layers_.back().out_stride, layers_.back().out,
                    residual_ ? batch_.x_tangent : nullptr, batch_.out_tangent);
    }

    template <Function f> static void apply_tangent(const T* z, const T* dot_z, T* dot_a, int64_t count, T p, T dot_p) {
        for (int64_t i = 0; i < count; i += lanes<T>) {
            const vec<T> v = load(z + i);
            vec<T> result = evaluate<f>(v, p).first * load(dot_z + i);
            if constexpr (f == Function::leaky) result += negative_part(v, v) * dot_p;
            store(dot_a + i, result);
        }
    }

    // value where v is on the sloped side of a leaky unit, else 0
    GWF_INLINE static vec<T> negative_part(vec<T> v, vec<T> value) { return v > vec<T>{} ? vec<T>{} : value; }

    void backward() {
        T *u = memory_.spare[0], *next = memory_.spare[1], *dot_u = memory_.spare[2], *dot_next = memory_.spare[3];
        start_backward(u, dot_u);
        for (size_t l = last() + 1; l-- > 0;) {
            const auto& layer = layers_[l];
            GradientSums<T> sums = sums_ ? layer.sums(sums_) : GradientSums<T>{nullptr, memory_.bias_sums, nullptr};
            if (second())
                with_function<false>(function(l), [&](auto f) { differentiate_twice<f()>(l, u, dot_u, sums); });
            else
                with_function(function(l), [&](auto f) { differentiate<f()>(l, u, sums); });
            if (sums_ && second()) {
                add_weight_gradient(layer, memory_.dot_a[l], u, rows_, sums.weight);
                add_weight_gradient(layer, memory_.a[l], dot_u, rows_, sums.weight);
            } else if (sums_) {
                add_weight_gradient(layer, memory_.a[l], u, rows_, sums.weight);
            }
            if (l == 0 && !batch_.dx) return;
            const int64_t P = layer.out_stride, Q = layer.in_stride;
            multiply<false>(u, P, layer.parameters.backward, Q, layer.out, next, Q, rows_, layer.in_padded);
            if (second()) {
                multiply<false>(dot_u, P, layer.parameters.backward, Q, layer.out, dot_next, Q, rows_, layer.in_padded);
                if (layer.tangents.backward)
                    multiply<false>(u, P, layer.tangents.backward, Q, layer.out, dot_next, Q, rows_, layer.in_padded,
                                    nullptr, true);
            }
            std::swap(u, next);
            std::swap(dot_u, dot_next);
        }
        finish_backward(second() ? dot_u : u);
    }

    void start_backward(T* u, T* dot_u) const {
        const auto& layer = layers_.back();
        if (batch_.cotangent) {
            gather(batch_.cotangent, layer.out, u, layer.out_stride);
        } else {
            for (int64_t r = 0; r < rows_; r++) {
                std::fill_n(u + r * layer.out_stride, layer.out, batch_.uniform_cotangent);
                std::fill_n(u + r * layer.out_stride + layer.out, layer.out_stride - layer.out, T(0));
            }
        }
        if (second()) std::fill_n(dot_u, rows_ * layer.out_stride, T(0));
    }

    void finish_backward(const T* u) const {
        const auto& layer = layers_.front();
        scatter(u, layer.in_stride, layer.in, nullptr, batch_.dx);
        if (!residual_ || second()) return;
        const int64_t start = first_ * layer.in;
        for (int64_t i = start; i < start + rows_ * layer.in; i++)
            batch_.dx[i] += batch_.cotangent ? batch_.cotangent[i] : batch_.uniform_cotangent;
    }

    // u becomes the cotangent of z; sums of it make the gradients of bias and slope
    template <Function f> void differentiate(size_t l, T* u, const GradientSums<T>& sums) const {
        const auto& layer = layers_[l];
        const T p = constant(l);
        const bool slope = f == Function::leaky && layer.learned_slope && sums.slope;
        for (int64_t c = 0; c < layer.out_padded; c += lanes<T>) {
            vec<T> bias_sum{}, slope_sum{};
            for (int64_t r = 0; r < rows_; r++) {
                const int64_t i = r * layer.out_stride + c;
                const vec<T> v = load(memory_.z[l] + i);
                vec<T> g = load(u + i);
                if (slope) slope_sum += g * negative_part(v, v);
                g *= evaluate<f>(v, p).first;
                bias_sum += g;
                store(u + i, g);
            }
            store(sums.bias + c, vec<T>(load(sums.bias + c) + bias_sum));
            if (slope) store(sums.slope, vec<T>(load(sums.slope) + slope_sum));
        }
    }

    // the same with tangents; the sums are tangents of those above
    template <Function f> void differentiate_twice(size_t l, T* u, T* dot_u, const GradientSums<T>& sums) const {
        const auto& layer = layers_[l];
        const T p = constant(l), dot_p = layer.tangents.slope;
        const bool slope = f == Function::leaky && layer.learned_slope && sums.slope;
        for (int64_t c = 0; c < layer.out_padded; c += lanes<T>) {
            vec<T> bias_sum{}, slope_sum{};
            for (int64_t r = 0; r < rows_; r++) {
                const int64_t i = r * layer.out_stride + c;
                const vec<T> v = load(memory_.z[l] + i), dot_v = load(memory_.dot_z[l] + i);
                const vec<T> g = load(u + i), dot_g = load(dot_u + i);
                const auto jet = evaluate<f>(v, p);
                if (slope) slope_sum += dot_g * negative_part(v, v) + g * negative_part(v, dot_v);
                vec<T> dot_d = dot_g * jet.first + g * jet.second * dot_v;
                if constexpr (f == Function::leaky) dot_d += negative_part(v, g) * dot_p;
                bias_sum += dot_d;
                store(u + i, vec<T>(g * jet.first));
                store(dot_u + i, dot_d);
            }
            store(sums.bias + c, vec<T>(load(sums.bias + c) + bias_sum));
            if (slope) store(sums.slope, vec<T>(load(sums.slope) + slope_sum));
        }
    }

    MlpPass pass_;
    bool residual_;
    const std::vector<PackedLayer<T>>& layers_;
    TileMemory<T>& memory_;
    const MlpBatch<T>& batch_;
    int64_t first_ = 0, rows_ = 0;
    T* sums_ = nullptr;
};

}  // namespace gwf::GWF_ISA
