// One line at a time: waves by recurrence, lanes over the points; powers by prefix sums over the sorted points;
// exponentials by sweeps over these.
#pragma once
#include <vector>

#include "simd/math.h"
#include "sliced/decay.h"
#include "sliced/sort.h"
#include "sliced/sum.h"
#include "team.h"

namespace gwf::GWF_ISA {

// Cosine and sine of 2 pi u, to rounding.
template <class V> GWF_INLINE void wave(V u, V& cosine, V& sine) {
    using T = scalar_t<V>;
    constexpr T magic = exp2_constants<T>::magic;
    constexpr int sign_bit = int(sizeof(T)) * 8 - 1;
    const V shifted = u * T(2) + magic;  // to the nearest half turn; its last bit is the sign
    const auto sign = as_bits<T>(shifted) << sign_bit;
    const V a = (u - (shifted - magic) * T(0.5)) * T(6.283185307179586), w = a * a;  // |a| <= pi / 2
    constexpr int terms = sizeof(T) == 4 ? 7 : 12;                                   // of Taylor's series
    V c = splat(T(1)), s = splat(T(1));
#pragma GCC unroll 16
    for (int k = terms; k >= 1; k--) {
        c = T(1) - c * w * T(1.0 / ((2 * k - 1) * (2 * k)));
        s = T(1) - s * w * T(1.0 / ((2 * k) * (2 * k + 1)));
    }
    cosine = (V)(as_bits<T>(c) ^ sign);
    sine = (V)(as_bits<T>(V(a * s)) ^ sign);
}

template <class T> class SlicedLine {
  public:
    explicit SlicedLine(const SlicedSumCall<T>& call) : call_(call) {}

    void run(int64_t line) {
        const SlicedSumCall<T>& c = call_;
        const T *x = c.x + line * c.rows, *y = c.y + line * c.columns;
        const T* w = c.weights + line * c.weight_stride;
        T* out = c.out + line * c.channels * c.rows;
        std::fill(out, out + c.channels * c.rows, T(0));
        if (c.modes) {
            turns(x, c.rows, x_);
            if (x != y) turns(y, c.columns, y_);
            for (int64_t k = 0; k < c.channels; k++) {
                collect(x == y ? x_ : y_, w + k * c.columns);
                differentiate();
                evaluate(out + k * c.rows);
            }
        }
        if (c.powers || c.nodes) {
            const Keyed<T>* targets = of_x_.sort(x, c.rows);
            const Keyed<T>* sources = x == y ? targets : of_y_.sort(y, c.columns);
            for (int64_t k = 0; k < c.channels; k++) {
                exact_.assign(size_t(c.rows), 0.0);  // powers and exponentials may cancel
                if (c.powers) sorted(targets, sources, w + k * c.columns, exact_.data());
                if (c.nodes) decay_.run(c, targets, sources, w + k * c.columns, exact_.data());
                for (int64_t i = 0; i < c.rows; i++) out[k * c.rows + i] += T(exact_[size_t(i)]);
            }
        }
    }

  private:
    using V = vec<T>;
    static constexpr int together = 4;  // vectors of points
    static constexpr int block = together * lanes<T>;
    static constexpr int64_t few = 256;  // blocks whose sums stay in single precision

    void turns(const T* points, int64_t n, std::vector<T>& to) {
        to.assign(size_t((n + block - 1) / block * block), T(0));
        const T scale = T(1 / call_.period);
        for (int64_t i = 0; i < n; i++) to[size_t(i)] = points[i] * scale;
    }

    // cosines_[m] + i sines_[m] = sum_j w_j exp(2 pi i m y_j)
    void collect(const std::vector<T>& y, const T* weights) {
        const int64_t modes = call_.modes;
        padded_.assign(y.size(), T(0));
        std::copy(weights, weights + call_.columns, padded_.begin());
        cosines_.assign(size_t(modes), 0);
        sines_.assign(size_t(modes), 0);
        partial_.assign(size_t(2 * modes) * lanes<T>, T(0));
        const int64_t blocks = int64_t(y.size()) / block;
        for (int64_t b = 0; b < blocks; b++) {
            breathe(4 * double(block) * double(modes));
            V step_c[together], step_s[together], c[together], s[together];
#pragma GCC unroll 4
            for (int v = 0; v < together; v++) {
                const V u = load(&y[size_t(b * block + v * lanes<T>)]);
                const V w = load(&padded_[size_t(b * block + v * lanes<T>)]);
                wave(u, step_c[v], step_s[v]);
                wave(V(u * T(call_.first)), c[v], s[v]);
                c[v] *= w, s[v] *= w;
            }
            T* sums = partial_.data();
            for (int64_t m = 0; m < modes; m++, sums += 2 * lanes<T>) {
                store(sums, V(load(sums) + ((c[0] + c[1]) + (c[2] + c[3]))));
                store(sums + lanes<T>, V(load(sums + lanes<T>) + ((s[0] + s[1]) + (s[2] + s[3]))));
                advance(c, s, step_c, step_s);
            }
            if (b % few == few - 1 || b == blocks - 1) flush();
        }
    }

    void flush() {
        for (int64_t m = 0; m < call_.modes; m++) {
            T* sums = &partial_[size_t(2 * m) * lanes<T>];
            cosines_[size_t(m)] += double(horizontal_sum<T>(load(sums)));
            sines_[size_t(m)] += double(horizontal_sum<T>(load(sums + lanes<T>)));
        }
        std::fill(partial_.begin(), partial_.end(), T(0));
    }

    static GWF_INLINE void advance(V* c, V* s, const V* step_c, const V* step_s) {
#pragma GCC unroll 4
        for (int v = 0; v < together; v++) {
            const V turned = c[v] * step_c[v] - s[v] * step_s[v];
            s[v] = c[v] * step_s[v] + s[v] * step_c[v];
            c[v] = turned;
        }
    }

    // Coefficients of cos and sin at the targets: a_m Re (i k)^order exp(i k x) conj(sum)
    void differentiate() {
        factors_.resize(size_t(2 * call_.modes));
        for (int64_t m = 0; m < call_.modes; m++) {
            double a = call_.waves[m], c = cosines_[size_t(m)], s = sines_[size_t(m)];
            for (int k = 0; k < call_.order; k++) {
                a *= 6.283185307179586 / call_.period * double(call_.first + m);
                c = std::exchange(s, -c);
            }
            factors_[size_t(2 * m)] = T(a * c);
            factors_[size_t(2 * m + 1)] = T(a * s);
        }
    }

    void evaluate(T* out) {
        for (int64_t i = 0; i < call_.rows; i += block) {
            breathe(4 * double(block) * double(call_.modes));
            V step_c[together], step_s[together], c[together], s[together], sum[together];
#pragma GCC unroll 4
            for (int v = 0; v < together; v++) {
                const V u = load(&x_[size_t(i + v * lanes<T>)]);
                wave(u, step_c[v], step_s[v]);
                wave(V(u * T(call_.first)), c[v], s[v]);
                sum[v] = V{};
            }
            const T* factor = factors_.data();
            for (int64_t m = 0; m < call_.modes; m++, factor += 2) {
                const V p = splat(factor[0]), q = splat(factor[1]);
#pragma GCC unroll 4
                for (int v = 0; v < together; v++) sum[v] += p * c[v] + q * s[v];
                advance(c, s, step_c, step_s);
            }
            alignas(64) T buffer[block];
            for (int v = 0; v < together; v++) store(buffer + v * lanes<T>, sum[v]);
            std::copy(buffer, buffer + std::min<int64_t>(block, call_.rows - i), out + i);
        }
    }

    // d^order |t|^k = k! / (k - order)! |t|^(k - order) sign(t)^order by the moments of the sources below, at and
    // above.
    void sorted(const Keyed<T>* targets, const Keyed<T>* sources, const T* weights, double* out) {
        const int count = int(call_.powers);
        breathe(30 * double(call_.columns) + 100 * double(call_.rows));
        double below[most_powers] = {}, all[most_powers] = {}, at[most_powers] = {};
        auto add = [&](double* moments, const Keyed<T>& source) {
            double term = double(weights[source.index()]);
            const double value = double(source.value());
            for (int q = 0; q < count; q++, term *= value) moments[q] += term;
        };
        for (int64_t j = 0; j < call_.columns; j++) add(all, sources[j]);
        int64_t j = 0;
        for (int64_t i = 0; i < call_.rows; i++) {
            const T s = targets[i].value();
            if (i == 0 || s != targets[i - 1].value()) {
                for (; j < call_.columns && sources[j].value() < s; j++) add(below, sources[j]);
                std::fill(at, at + count, 0.0);
                for (int64_t tied = j; tied < call_.columns && sources[tied].value() == s; tied++)
                    add(at, sources[tied]);
            }
            out[targets[i].index()] += power_sum(double(s), below, at, all);
        }
    }

    double power_sum(double s, const double* below, const double* at, const double* all) const {
        double total = 0;
        for (int k = call_.order; k < int(call_.powers); k++) {
            if (call_.power[k] == 0) continue;
            const int n = k - call_.order;
            double factor = call_.power[k];
            for (int q = n + 1; q <= k; q++) factor *= q;
            // sum_j w_j (s - y_j)^n by the binomial theorem, with the sign of s - y_j where k is odd
            double sum = 0, binomial = 1, sign = 1;
            for (int q = n; q >= 0; q--) {  // Horner in s: the moment of order n - q multiplies s^q
                const int moment = n - q;
                const double m = k % 2 ? 2 * below[moment] + at[moment] - all[moment] : all[moment];
                sum += binomial * sign * m * integer_power(s, q);
                binomial = binomial * (n - moment) / (moment + 1);
                sign = -sign;
            }
            total += factor * sum;
        }
        return total;
    }

    static double integer_power(double s, int n) {
        double out = 1;
        for (int k = 0; k < n; k++) out *= s;
        return out;
    }

    const SlicedSumCall<T>& call_;
    std::vector<T> x_, y_, padded_, partial_, factors_;
    std::vector<double> cosines_, sines_;
    Sorter<T> of_x_, of_y_;
    DecayingSum<T> decay_;
    std::vector<double> exact_;
};

template <class T> void run_sliced_sum(const SlicedSumCall<T>& call) {
    const int64_t work = call.lines * (call.rows + call.columns);
    Team::form(work > 20000 ? available_threads() : 1, [&](Team& team, int) {
        SlicedLine<T> line(call);
        team.loop(call.lines, 1, [&](int64_t l) { line.run(l); });
    });
}

}  // namespace gwf::GWF_ISA
