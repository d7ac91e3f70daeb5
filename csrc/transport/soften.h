// A softened minimum over the costs of a small problem, which lie in cache: what Sinkhorn's iteration consists of.
// Everything is double whatever the points are: float costs of ten epsilon leave no plan a marginal error of 1e-6.
#pragma once
#include <algorithm>
#include <cmath>

#include "memory.h"
#include "simd/math.h"

namespace gwf::GWF_ISA::entropic {

using Vec = vec<double>;
inline constexpr int64_t L = lanes<double>;
inline constexpr double log2_e = 1.4426950408889634;
inline constexpr double weightless = -1e290;  // the logarithm of 0, finite: differences stay numbers

inline int64_t padded(int64_t count) { return (count + L - 1) / L * L; }

// Points of one side, lanes beyond the last repeating it, without weight.
struct Side {
    int64_t count, width;           // of points, and of lanes
    double* points;                 // [D][width]
    double *weights, *log_weights;  // [width], the logarithm to base 2
    double total;                   // of the weights

    static int64_t size(int64_t count, int64_t D) { return (D + 2) * (padded(count) + 16); }
    Side(Arena<double>& arena, int64_t n, int64_t D)
        : count(n),
          width(padded(n)),
          points(arena.take(D * width)),
          weights(arena.take(width)),
          log_weights(arena.take(width)) {}

    // False for weights that are none, and points that are not finite.
    template <class T> bool read(const T* x, const T* w, int64_t D) {
        bool finite = true;
        for (int64_t i = 0; i < width; i++)
            for (int64_t d = 0; d < D; d++) {
                const double value = x[std::min(i, count - 1) * D + d];
                finite &= std::isfinite(value);
                points[d * width + i] = value;
            }
        total = 0;
        for (int64_t i = 0; i < width; i++) {
            const double value = i >= count ? 0 : w ? double(w[i]) : 1 / double(count);
            finite &= std::isfinite(value) && value >= 0;
            weights[i] = value;
            log_weights[i] = value > 0 ? std::log2(value) : weightless;
            total += value;
        }
        return finite && total > 0;
    }
};

// Costs of the pairs, terms outside and results in the lanes: what updates the potential of `lanes` from that of
// `terms`.
struct Half {
    const Side *lanes, *terms;
    double* costs;  // [terms][lanes]

    static int64_t size(int64_t lanes, int64_t terms) { return padded(lanes) * terms + 16; }
};

// Returns the largest cost.
inline double measure(const Half& half, int64_t D, int p) {
    const Side &x = *half.lanes, &y = *half.terms;
    Vec largest{};
    for (int64_t j = 0; j < y.count; j++)
        for (int64_t i = 0; i < x.width; i += L) {
            Vec square{};
            for (int64_t d = 0; d < D; d++) {
                const Vec e = load(x.points + d * x.width + i) - y.points[d * y.width + j];
                square += e * e;
            }
            const Vec cost = p == 2 ? Vec(0.5 * square) : square_root(square);
            largest = larger(cost, largest);
            store(half.costs + j * x.width + i, cost);
        }
    double most = 0;
    for (int l = 0; l < L; l++) most = std::max(most, double(largest[l]));
    return most;
}

// log2 w + potential / (eps log 2) of the terms.
inline void shift_terms(const Side& terms, const double* potential, double unit, double* shifts) {
    for (int64_t j = 0; j < terms.width; j += L) {
        const Vec log_weight = load(terms.log_weights + j);
        store(shifts + j, potential ? Vec(load(potential + j) * unit + log_weight) : log_weight);
    }
}

// out = -scale log2 sum_j 2**(shift_j - unit c_ij) for K vectors of lanes. Exponents count from what `near`, a result
// close by, makes of them; without one, and where a sum leaves the range of numbers, from the largest.
template <int K>
void soften(const double* costs, int64_t stride, int64_t terms, const double* shifts, double unit, double scale,
            const double* near, double* out) {
    const Vec per = splat(unit);
    Vec origin[K], sum[K];
    for (bool sure = !near;; sure = true) {
        for (int k = 0; k < K; k++) origin[k] = sure ? splat(2 * weightless) : Vec(load(near + k * L) * (-1 / scale));
        const double* c = costs;
        for (int64_t j = 0; sure && j < terms; j++, c += stride)
            for (int k = 0; k < K; k++) origin[k] = larger(origin[k], Vec(shifts[j] - load(c + k * L) * per));
        for (int k = 0; k < K; k++) sum[k] = Vec{};
        c = costs;
        for (int64_t j = 0; j < terms; j++, c += stride)
#pragma GCC unroll 4
            for (int k = 0; k < K; k++) sum[k] += exp2_any<false>(Vec((shifts[j] - origin[k]) - load(c + k * L) * per));
        if (sure) break;
        bool lost = false;
        for (int k = 0; k < K; k++) lost |= any_less(sum[k], splat(0x1p-400)) || any_less(splat(0x1p400), sum[k]);
        if (!lost) break;
    }
    for (int k = 0; k < K; k++) store(out + k * L, Vec((origin[k] + log2_of(sum[k])) * -scale));
}

// The best potential of the half's lanes for one of its terms (null: 0), [width].
struct Numbers {
    double epsilon, damping;
    double unit() const { return log2_e / epsilon; }
    double scale() const { return epsilon * damping / log2_e; }
};
inline void update(const Half& half, const double* potential, Numbers numbers, const double* near, double* shifts,
                   double* out) {
    shift_terms(*half.terms, potential, numbers.unit(), shifts);
    const int64_t width = half.lanes->width, terms = half.terms->count;
    for (int64_t i = 0; i < width;) {
        auto block = [&]<int K>() {
            soften<K>(half.costs + i, width, terms, shifts, numbers.unit(), numbers.scale(), near ? near + i : nullptr,
                      out + i);
            i += K * L;
        };
        const int64_t left = (width - i) / L;
        if (left >= 4)
            block.operator()<4>();
        else if (left >= 2)
            block.operator()<2>();
        else
            block.operator()<1>();
    }
}

inline double sum_of(const double* values, int64_t width) {
    Vec sum{};
    for (int64_t i = 0; i < width; i += L) sum += load(values + i);
    return horizontal_sum<double>(sum);
}

// sum_i |mass_i - wanted_i| / sum_i w_i, where `best` is the update for `potential`. rho = 0: marginals hold exactly.
inline double marginal_error(const Side& side, const double* potential, const double* best, double epsilon,
                             double rho) {
    const Vec most = splat(1e150);  // a number, for points without weight
    Vec missed{};
    for (int64_t i = 0; i < side.width; i += L) {
        const Vec b = load(best + i);
        const Vec off = exponential(Vec((load(potential + i) - b) * (1 / epsilon))).minus_one();
        Vec wanted = load(side.weights + i);
        if (rho > 0) wanted *= smaller(most, exponential(Vec(b * (-1 / rho))).value());
        missed += wanted * smaller(most, larger(off, Vec(-off)));
    }
    return horizontal_sum<double>(missed) / side.total;
}

}  // namespace gwf::GWF_ISA::entropic
