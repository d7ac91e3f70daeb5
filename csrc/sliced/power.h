// One direction of the generalised energy distance, 2 E|a - b|^e - E|a - a'|^e - E|b - b'|^e with 0 < e < 2, e != 1:
// the power u^(e-1) is a sum of exponentials, and a sum of exponentials over sorted points is one sweep in each
// direction, in O(points x nodes) (Beylkin & Monzon 2005). Lanes are nodes. All in double: a sweep multiplies as many
// factors as there are points.
#pragma once
#include "simd/math.h"
#include "sliced/line.h"
#include "team.h"

namespace gwf::GWF_ISA {

template <class T> class PowerLine {
  public:
    // The value, by Euler's theorem for homogeneous functions from the gradient: e D^2 = sum_a z_a dD^2/dz_a.
    double run(SortedSide<T>& x, SortedSide<T>& y, const SlicedCall<T>& call) {
        if (!merge(x, y)) return spoiled(x, y);
        prepare(call);
        const double e = call.power, length = width_ > 0 ? std::pow(width_, e - 1) : 0.0;
        const double factor = -2 * e * length;
        differences_.assign(points_, 0.0);
        sweep(charge_, coefficient_, 1.0, -1.0, differences_);  // sum_b q_b sign(z_a - z_b) |z_a - z_b|^(e-1)
        double total = 0;
        for (size_t a = 0; a < points_; a++) total += charge_[a] * at_[a] * differences_[a];
        if (call.x_potential) potentials(factor * width_, e);
        if (!x.tangent.empty()) bend();
        spread(x, y, factor * call.scale / (x.tangent.empty() || width_ == 0 ? 1.0 : width_));
        return factor / e * width_ * total;
    }

  private:
    // Both sides in one order, on [0, 1], with masses as charges of either sign.
    bool merge(const SortedSide<T>& x, const SortedSide<T>& y) {
        points_ = size_t(x.n + y.n);
        at_.resize(points_), charge_.resize(points_), tangent_.resize(points_), from_.resize(points_);
        if (x.n == 0 || y.n == 0) return false;
        for (const T end : {x.value[0], x.value[x.n - 1], y.value[0], y.value[y.n - 1]})
            if (!std::isfinite(end)) return false;  // NaNs of either sign come first or last in the order of the sort
        const double low = std::min(x.value[0], y.value[0]), high = std::max(x.value[x.n - 1], y.value[y.n - 1]);
        width_ = high - low;
        if (!std::isfinite(width_)) return false;
        int64_t i = 0, j = 0;
        for (size_t a = 0; a < points_; a++) {
            const bool of_x = j == y.n || (i < x.n && x.value[i] <= y.value[j]);
            const SortedSide<T>& side = of_x ? x : y;
            const int64_t k = of_x ? i++ : j++;
            from_[a] = of_x ? k : ~k;
            at_[a] = width_ > 0 ? (double(side.value[k]) - low) / width_ : 0.0;
            charge_[a] = of_x ? side.mass_of(k) : -side.mass_of(k);
            tangent_[a] = side.tangent.empty() ? 0.0 : double(side.tangent[k]);
        }
        return true;
    }

    void prepare(const SlicedCall<T>& call) {
        constexpr int64_t width = lanes<double>;
        nodes_ = size_t((call.nodes + width - 1) / width * width);
        rate_.assign(nodes_, 1e300), coefficient_.assign(nodes_, 0.0), state_.resize(nodes_);
        std::copy(call.rates, call.rates + call.nodes, rate_.begin());
        std::copy(call.coefficients, call.coefficients + call.nodes, coefficient_.begin());
    }

    // out_a += from_left sum_{z_b < z_a} q_b k(z_a - z_b) + from_right sum_{z_b > z_a} q_b k(z_b - z_a),
    // k(u) = sum_q c_q exp(-rate_q u). Equal points do not act on one another.
    void sweep(const std::vector<double>& charge, const std::vector<double>& c, double from_left, double from_right,
               std::vector<double>& out) {
        const auto n = int64_t(points_);
        one_way(charge, c, from_left, out, 0, n, 1);
        one_way(charge, c, from_right, out, n - 1, -1, -1);
    }

    void one_way(const std::vector<double>& charge, const std::vector<double>& c, double sign, std::vector<double>& out,
                 int64_t first, int64_t end, int64_t step) {
        constexpr double log2_e = 1.4426950408889634, nothing = 40;  // exp(-40) of a charge is rounding
        std::fill(state_.begin(), state_.end(), 0.0);
        double unheard = 0;
        size_t active = 0;  // nodes whose exponentials reach from the points before to here
        for (int64_t a = first; a != end;) {
            int64_t last = a;
            double group = 0;
            vec<double> sum = {};
            for (size_t q = 0; q < active; q += lanes<double>) sum += load(&c[q]) * load(&state_[q]);
            const double here = sign * horizontal_sum<double>(sum);
            do {  // at least one, whatever the numbers are
                out[last] += here;
                group += charge[last];
                last += step;
            } while (last != end && at_[last] == at_[a]);
            if ((unheard += 8 + double(active)) > 1e6) breathe(std::exchange(unheard, 0.0));
            if (last == end) break;
            const double gap = std::abs(at_[last] - at_[a]);
            const size_t before = active;
            active = size_t(std::upper_bound(rate_.begin(), rate_.end(), nothing / gap) - rate_.begin());
            active = std::min(nodes_, (active + lanes<double> - 1) / lanes<double> * lanes<double>);
            for (size_t q = 0; q < active; q += lanes<double>) {
                const vec<double> left = exp2_any<true>(vec<double>(load(&rate_[q]) * (gap * log2_e)));
                store(&state_[q], vec<double>((load(&state_[q]) + group) * left));
            }
            if (active < before) std::fill(state_.begin() + int64_t(active), state_.begin() + int64_t(before), 0.0);
            a = last;
        }
    }

    // dD^2/dq_a = -2 sum_b q_b |z_a - z_b|^e by the integral of the exponentials from 0; constants are nothing, as
    // masses keep their sum. The rate 0 makes a term |u|, by the charges to the left.
    void potentials(double factor, double exponent) {
        std::vector<double> integral(nodes_, 0.0);
        double own = 0, whole = coefficient_[0];
        for (size_t q = 0; q < nodes_; q++)
            if (rate_[q] > 0) {
                integral[q] = -coefficient_[q] / rate_[q];
                own += integral[q];
                whole += integral[q] * std::expm1(-rate_[q]);
            }
        own -= 1 / exponent - whole;  // what the exponentials miss of int_0^1 u^(e-1) du lies at u = 0
        potential_.assign(points_, 0.0);
        sweep(charge_, integral, 1.0, 1.0, potential_);
        double moment = 0, left = 0, before = 0;  // of the charges about 0, their sum, and sum_b q_b (z_a - z_b)_+
        for (size_t a = 0; a < points_; a++) moment += charge_[a] * at_[a];
        for (size_t a = 0; a < points_;) {
            size_t last = a;
            double group = 0;
            if (a > 0) before += left * (at_[a] - at_[a - 1]);
            for (; last < points_ && at_[last] == at_[a]; last++) group += charge_[last];
            // |u| = 2 u_+ - u, and the charges add up to nothing
            const double linear = coefficient_[0] * (2 * before + moment);
            for (size_t k = a; k < last; k++) potential_[k] = factor * (potential_[k] + own * group + linear);
            left += group;
            a = last;
        }
    }

    // The derivative of the differences along the tangents: sum_b q_b k'(|z_a - z_b|) (t_a - t_b).
    void bend() {
        std::vector<double> slope(nodes_), moved(points_), drag(points_, 0.0), pull(points_, 0.0);
        for (size_t q = 0; q < nodes_; q++) slope[q] = -coefficient_[q] * rate_[q];
        for (size_t a = 0; a < points_; a++) moved[a] = charge_[a] * tangent_[a];
        sweep(charge_, slope, 1.0, 1.0, drag);
        sweep(moved, slope, 1.0, 1.0, pull);
        for (size_t a = 0; a < points_; a++) differences_[a] = tangent_[a] * drag[a] - pull[a];
    }

    void spread(SortedSide<T>& x, SortedSide<T>& y, double factor) {
        const bool potentials = !x.potential.empty();
        for (size_t a = 0; a < points_; a++) {
            const bool of_x = from_[a] >= 0;
            SortedSide<T>& side = of_x ? x : y;
            const int64_t k = of_x ? from_[a] : ~from_[a];
            side.gradient[k] = T(factor * charge_[a] * differences_[a]);
            if (potentials) side.potential[k] = of_x ? potential_[a] : -potential_[a];
        }
    }

    size_t points_ = 0, nodes_ = 0;
    double width_ = 0;  // of both sets
    std::vector<double> at_, charge_, tangent_, differences_, potential_;
    std::vector<int64_t> from_;  // place in x, or ~place in y
    std::vector<double> rate_, coefficient_, state_;
};

}  // namespace gwf::GWF_ISA
