// Sums of exponentials of the distances between sorted numbers: one sweep in each direction, in
// O((rows + columns) nodes) (Beylkin & Monzon 2005). Lanes are nodes, all in double, as in power.h.
#pragma once
#include <cmath>

#include "simd/math.h"
#include "sliced/sort.h"
#include "sliced/sum.h"
#include "team.h"

namespace gwf::GWF_ISA {

template <class T> class DecayingSum {
  public:
    // out_i += sum_j w_j f^(order)(x_i - y_j), f(t) = sum_q c_q exp(-rate_q |t|), `tied` at 0 or, derived, 0.
    void run(const SlicedSumCall<T>& call, const Keyed<T>* targets, const Keyed<T>* sources, const T* weights,
             double* out) {
        prepare(call);
        sums_.assign(size_t(call.rows), 0.0);
        one_way(call, targets, sources, weights, 1);
        one_way(call, targets, sources, weights, -1);
        if (call.order == 0 && call.tied != 0) tie(call, targets, sources, weights);
        for (int64_t i = 0; i < call.rows; i++) out[targets[i].index()] += sums_[size_t(i)];
    }

  private:
    void prepare(const SlicedSumCall<T>& call) {
        constexpr int64_t width = lanes<double>;
        const auto padded = size_t((call.nodes + width - 1) / width * width);
        rate_.assign(padded, 1e300), coefficient_.assign(padded, 0.0), state_.assign(padded, 0.0);
        for (int64_t q = 0; q < call.nodes; q++) {
            rate_[size_t(q)] = call.rates[q];
            double c = call.decays[q];
            for (int k = 0; k < call.order; k++) c *= -call.rates[q];
            coefficient_[size_t(q)] = c;
        }
    }

    // From the sources strictly behind a target, in the direction of the step. Derivatives of odd order change sign
    // with t.
    void one_way(const SlicedSumCall<T>& call, const Keyed<T>* targets, const Keyed<T>* sources, const T* weights,
                 int step) {
        const double sign = step < 0 && call.order % 2 ? -1 : 1;
        const int64_t rows = call.rows, columns = call.columns;
        std::fill(state_.begin(), state_.end(), 0.0);
        active_ = 0;
        int64_t i = step > 0 ? 0 : rows - 1, j = step > 0 ? 0 : columns - 1;
        double at = 0, unheard = 0;
        bool begun = false;
        while (i >= 0 && i < rows) {
            const double target = double(targets[i].value());
            const bool is_source = j >= 0 && j < columns && step * (double(sources[j].value()) - target) < 0;
            const double here = is_source ? double(sources[j].value()) : target;
            if (begun && here != at) advance(std::abs(here - at));
            begun = true, at = here;
            if ((unheard += 8 + double(active_)) > 1e6) breathe(std::exchange(unheard, 0.0));
            if (is_source) {
                add(double(weights[sources[j].index()]));
                j += step;
                continue;
            }
            vec<double> sum = {};
            for (size_t q = 0; q < active_; q += lanes<double>) sum += load(&coefficient_[q]) * load(&state_[q]);
            sums_[size_t(i)] += sign * horizontal_sum<double>(sum);
            i += step;
        }
    }

    void add(double mass) {
        active_ = state_.size();
        for (double& state : state_) state += mass;
    }

    // Decay over a gap; exp(-40) of a mass is rounding.
    void advance(double gap) {
        constexpr double log2_e = 1.4426950408889634, nothing = 40;
        const auto reach = size_t(std::upper_bound(rate_.begin(), rate_.end(), nothing / gap) - rate_.begin());
        const size_t before = active_;
        active_ = std::min(before, (reach + lanes<double> - 1) / lanes<double> * lanes<double>);
        for (size_t q = 0; q < active_; q += lanes<double>)
            store(&state_[q],
                  vec<double>(load(&state_[q]) * exp2_any<true>(vec<double>(load(&rate_[q]) * (gap * log2_e)))));
        std::fill(state_.begin() + int64_t(active_), state_.begin() + int64_t(before), 0.0);
    }

    void tie(const SlicedSumCall<T>& call, const Keyed<T>* targets, const Keyed<T>* sources, const T* weights) {
        int64_t j = 0;
        double mass = 0;
        for (int64_t i = 0; i < call.rows; i++) {
            const T s = targets[i].value();
            if (i == 0 || s != targets[i - 1].value()) {
                while (j < call.columns && sources[j].value() < s) j++;
                mass = 0;
                for (int64_t tied = j; tied < call.columns && sources[tied].value() == s; tied++)
                    mass += double(weights[sources[tied].index()]);
            }
            sums_[size_t(i)] += call.tied * mass;
        }
    }

    size_t active_ = 0;  // nodes whose exponentials reach from the sources before to here
    std::vector<double> rate_, coefficient_, state_, sums_;
};

}  // namespace gwf::GWF_ISA
