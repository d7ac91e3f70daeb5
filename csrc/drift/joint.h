// Drifting from the sets themselves: targets in a row about the centre of the positives, and for the released variant
// the common scale and the norms of the forces, between the passes of one instruction set (gwf_fast/drift/joint.py and
// multi.py have the same for sets that ask for more care).
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "drift/drift.h"

namespace gwf {

template <class T> struct JointCall {
    struct Set {
        int64_t count;
        const T* points;   // [B, count, D]
        const T* weights;  // [B, count], or [B, N, count] if by_row; null = ones
        bool by_row;
    };
    int64_t batch, dim;
    Set x;                             // particles
    std::vector<Set> negatives;        // of any kinds
    Set y;                             // positives
    std::vector<double> temperatures;  // of the released variant relative to the mean distance
    bool logarithms;                   // weights are logarithms of the kernel's weights, and none by_row
    double clip;                       // least product of the softmaxes
    bool exclude_self;                 // there is no pair of particle i with target i
    T* velocity;                       // [K, B, N, D]; released: [B, N, D], the sum
    bool released;                     // distances >= 1e-4, their mean as the unit, forces of one norm
    bool per_problem;                  // means are a problem's own, not the batch's
    T *scale, *raw;                    // released: [] or [B]; [K] or [B, K]
};

template <class T> class Joint {
  public:
    using Run = void (*)(const DriftCall<T>&);
    using Set = typename JointCall<T>::Set;
    using Bits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    Joint(const JointCall<T>& call, Run run) : call_(call), run_(run) {}

    // False where coordinates are none, or need a unit of their own.
    bool compute() {
        if (!join()) return false;
        const int64_t B = call_.batch, K = int64_t(call_.temperatures.size());
        std::vector<double> units(static_cast<size_t>(B), 1.0);
        if (call_.released) units = mean_distances();
        std::vector<T> at(static_cast<size_t>(K * B)), own(static_cast<size_t>(B), T(excluded));
        for (int64_t b = 0; b < B; b++) {
            const double unit = call_.released ? std::max(units[size_t(b)], least_unit) : 1;
            for (int64_t k = 0; k < K; k++) at[size_t(k * B + b)] = T(call_.temperatures[size_t(k)] * unit);
            if (call_.released) own[size_t(b)] = T(100 * unit);
        }
        std::vector<T> forces(call_.released ? size_t(K * B * rows() * call_.dim) : 0);
        DriftCall<T> drift = passes();
        drift.rates = K;
        drift.temperatures = at.data();
        drift.own = call_.released || call_.exclude_self ? own.data() : nullptr;
        drift.clip = call_.clip;
        drift.out = call_.released ? forces.data() : call_.velocity;
        run_(drift);
        if (call_.released) normalise(forces, units);
        return true;
    }

  private:
    static constexpr double excluded = 1e36, least_square = 1e-8, least_unit = 1e-3, huge = 1099511627776.0;  // 2^40
    const JointCall<T>& call_;
    Run run_;
    int64_t columns_ = 0;
    bool by_row_ = false;
    std::vector<T> x_, targets_, weights_;

    int64_t rows() const { return call_.x.count; }

    DriftCall<T> passes() const {
        DriftCall<T> drift{};
        drift.batch = call_.batch, drift.rows = rows(), drift.columns = columns_, drift.dim = call_.dim;
        drift.split = columns_ - call_.y.count;
        drift.x = x_.data(), drift.y = targets_.data(), drift.by_row = by_row_;
        if (!weights_.empty()) (call_.logarithms ? drift.log_weights : drift.weights) = weights_.data();
        drift.floor = call_.released ? least_square : 0;
        return drift;
    }

    // No centre where the cloud holds the origin: the last bits of points near it decide the distance of close ones.
    // Else one of some bits less, which subtracts from points near it without rounding.
    void find_centre(const T* points, int64_t count, std::vector<double>& sums, std::vector<T>& centre) const {
        const auto D = size_t(call_.dim);
        std::fill(sums.begin(), sums.end(), 0.0);
        double *sum = sums.data(), *squares = sum + D;
        for (int64_t i = 0; i < count; i++, points += D)
            for (size_t d = 0; d < D; d++) {
                const double value = points[d];
                sum[d] += value;
                squares[d] += value * value;
            }
        for (size_t d = 0; d < D; d++) {
            const double mean = sum[d] / double(count);
            const double variance = std::max(0.0, squares[d] / double(count) - mean * mean);
            centre[d] = 0;
            if (!(mean * mean > 16 * variance)) continue;
            int exponent;
            const double fraction = std::ldexp(std::frexp(mean, &exponent), std::numeric_limits<T>::digits - 8);
            centre[d] = T(std::ldexp(std::round(fraction), exponent - std::numeric_limits<T>::digits + 8));
        }
    }

    // to [count][D] = from less the centre. Returns the bits of the largest size, beyond those of all numbers for NaN.
    Bits place(const T* from, int64_t count, const T* centre, T* to) const {
        Bits most = 0;
        for (int64_t i = 0; i < count; i++, from += call_.dim, to += call_.dim)
            for (int64_t d = 0; d < call_.dim; d++) {
                to[d] = from[d] - centre[d];
                const Bits size = std::bit_cast<Bits>(to[d]) & std::numeric_limits<Bits>::max();
                most = most > size ? most : size;
            }
        return most;
    }

    // The weights of one set in a problem, whose targets begin at a column.
    void place_weights(const Set& set, int64_t b, int64_t first) {
        const int64_t copies = by_row_ ? rows() : 1, n = set.count;
        for (int64_t i = 0; set.weights && i < copies; i++)
            std::copy_n(set.weights + (set.by_row ? b * rows() + i : b) * n, n,
                        weights_.data() + (b * copies + i) * columns_ + first);
    }

    bool join() {
        const int64_t D = call_.dim;
        std::vector<Set> sets = call_.negatives;
        sets.push_back(call_.y);
        bool weighted = false;
        for (const Set& set : sets)
            columns_ += set.count, weighted |= set.weights != nullptr, by_row_ |= set.weights && set.by_row;
        x_.resize(size_t(call_.batch * rows() * D));
        targets_.resize(size_t(call_.batch * columns_ * D));
        if (weighted)
            weights_.resize(size_t(call_.batch * (by_row_ ? rows() : 1) * columns_), T(call_.logarithms ? 0 : 1));
        std::vector<double> sums(size_t(2 * D));
        std::vector<T> centre(static_cast<size_t>(D));
        Bits most = 0;
        for (int64_t b = 0, at = 0; b < call_.batch; b++) {
            find_centre(call_.y.points + b * call_.y.count * D, call_.y.count, sums, centre);
            T* const x = x_.data() + b * rows() * D;
            most = std::max(most, place(call_.x.points + b * rows() * D, rows(), centre.data(), x));
            for (const Set& set : sets) {
                T* const to = targets_.data() + at * D;
                if (set.points == call_.x.points && set.count == rows())
                    std::copy_n(x, rows() * D, to);
                else
                    most = std::max(most, place(set.points + b * set.count * D, set.count, centre.data(), to));
                place_weights(set, b, at - b * columns_);
                at += set.count;
            }
        }
        const double extent = double(std::bit_cast<T>(most));
        return extent <= huge && (call_.released || extent == 0 || extent >= 1 / huge);  // NaN is not
    }

    // The mean of w_j r_ij over the mean of w_j, of each problem.
    std::vector<double> mean_distances() {
        const auto B = size_t(call_.batch);
        std::vector<double> totals(B), masses(B);
        DriftCall<T> drift = passes();
        drift.total = totals.data();
        run_(drift);
        double total = 0, mass = 0;
        for (size_t b = 0; b < B; b++) {
            double weights = double(columns_);
            if (!weights_.empty()) {
                weights = 0;
                const size_t count = size_t(columns_ * (by_row_ ? rows() : 1));
                for (size_t j = 0; j < count; j++) weights += double(weights_[b * count + j]);
            }
            masses[b] = by_row_ ? weights : double(rows()) * weights;
            total += totals[b], mass += masses[b];
        }
        for (size_t b = 0; b < B; b++) totals[b] = call_.per_problem ? totals[b] / masses[b] : total / mass;
        for (size_t b = 0; b < (call_.per_problem ? B : 1); b++) call_.scale[b] = T(totals[b]);
        return totals;
    }

    void normalise(const std::vector<T>& forces, const std::vector<double>& units) const {
        const int64_t B = call_.batch, K = int64_t(call_.temperatures.size()), size = rows() * call_.dim;
        std::vector<double> steps(static_cast<size_t>(B)), raw(static_cast<size_t>(K * B));
        for (size_t b = 0; b < size_t(B); b++) steps[b] = std::max(units[b] / std::sqrt(double(call_.dim)), least_unit);
        for (int64_t k = 0; k < K; k++) {
            double all = 0;
            for (int64_t b = 0; b < B; b++) {
                double squares = 0;
                const T* force = forces.data() + (k * B + b) * size;
                for (int64_t i = 0; i < size; i++) squares += double(force[i]) * double(force[i]);
                squares /= steps[size_t(b)] * steps[size_t(b)] * double(size);
                raw[size_t(k * B + b)] = squares, all += squares;
                if (call_.per_problem) call_.raw[b * K + k] = T(squares);
            }
            if (call_.per_problem) continue;
            for (int64_t b = 0; b < B; b++) raw[size_t(k * B + b)] = all / double(B);
            call_.raw[k] = T(all / double(B));
        }
        for (int64_t b = 0; b < B; b++)
            for (int64_t i = 0; i < size; i++) {
                double sum = 0;
                for (int64_t k = 0; k < K; k++)
                    sum += double(forces[size_t((k * B + b) * size + i)]) /
                           std::sqrt(std::max(raw[size_t(k * B + b)], least_square));
                call_.velocity[b * size + i] = T(sum);
            }
    }
};

}  // namespace gwf
