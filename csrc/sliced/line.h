// One direction: sort both projections, and what follows from their order.
#pragma once
#include <limits>

#include "sliced/sliced.h"
#include "sliced/sort.h"

namespace gwf::GWF_ISA {

// Projections of one set, in their order.
template <class T> struct SortedSide {
    Sorter<T> sorter;
    const Keyed<T>* order = nullptr;
    int64_t n = 0;
    std::vector<T> value, tangent, gradient;
    std::vector<double> mass;       // empty: 1 / n each
    std::vector<double> potential;  // the derivative in the masses; empty where it is not wanted

    void sort(const T* projections, const T* tangents, const double* weights, int64_t count) {
        n = count;
        order = sorter.sort(projections, n);
        value.resize(size_t(n));
        gradient.assign(size_t(n), T(0));
        for (int64_t i = 0; i < n; i++) value[i] = order[i].value();
        tangent.resize(tangents ? size_t(n) : 0);
        if (tangents)
            for (int64_t i = 0; i < n; i++) tangent[i] = tangents[order[i].index()];
        mass.resize(weights ? size_t(n) : 0);
        if (weights)
            for (int64_t i = 0; i < n; i++) mass[i] = weights[order[i].index()];
    }
    void want_potential(bool wanted) { potential.assign(wanted ? size_t(n) : 0, 0.0); }
    double mass_of(int64_t i) const { return mass.empty() ? 1.0 / double(n) : mass[i]; }
    void scatter(T* out) const {
        for (int64_t i = 0; i < n; i++) out[order[i].index()] = gradient[i];
    }
    void scatter_potential(double* out) const {
        for (int64_t i = 0; i < n; i++) out[order[i].index()] = potential[i];
    }
};

// |d|^p, and its derivative, or that derivative's along a tangent.
struct Transport {
    double power, scale;
    double cost(double d) const { return power == 2 ? d * d : std::pow(std::abs(d), power); }
    double derivative(double d) const {
        if (power == 2) return scale * 2 * d;
        return d == 0 ? 0 : scale * power * std::pow(std::abs(d), power - 1) * (d > 0 ? 1 : -1);
    }
    double second(double d) const {
        if (power == 2) return scale * 2;
        return d == 0 || power == 1 ? 0 : scale * power * (power - 1) * std::pow(std::abs(d), power - 2);
    }
};

// Wasserstein cost between the quantile functions: a merge of the two cumulative masses. Mass is int64_t, in units of
// 1 / (n m), where all have the same, so that no piece comes from rounding.
template <class T, class Mass, class MassX, class MassY>
double transport(SortedSide<T>& x, SortedSide<T>& y, const Transport& cost, double unit, MassX of_x, MassY of_y) {
    double total = 0;
    if (x.n == 0 || y.n == 0) return total;
    const bool along = !x.tangent.empty();
    int64_t i = 0, j = 0;
    Mass left_x = of_x(0), left_y = of_y(0);
    double own = 0;
    while (i < x.n && j < y.n) {
        const Mass piece = std::min(left_x, left_y);
        const double d = double(x.value[i]) - double(y.value[j]), share = double(piece) * unit;
        total += piece > 0 ? share * cost.cost(d) : 0;
        const double force = piece > 0 ? share * (along ? cost.second(d) * (double(x.tangent[i]) - double(y.tangent[j]))
                                                        : cost.derivative(d))
                                       : 0;
        own += force;
        y.gradient[j] -= T(force);
        left_x -= piece;
        left_y -= piece;
        const bool next_x = !(left_x > 0), next_y = !(left_y > 0);  // one of them, whatever the masses
        if (next_x) {
            x.gradient[i++] = T(own);
            own = 0;
            if (i < x.n) left_x = of_x(i);
        }
        if (next_y && ++j < y.n) left_y = of_y(j);
    }
    if (i < x.n) x.gradient[i] = T(own);  // rounding of the weights' sums
    return total;
}

// Kantorovich's potentials: f_i + g_j is the cost along the path of the merge above, which makes them optimal.
template <class T> void transport_potentials(SortedSide<T>& x, SortedSide<T>& y, const Transport& cost) {
    auto between = [&](int64_t i, int64_t j) { return cost.cost(double(x.value[i]) - double(y.value[j])); };
    int64_t i = 0, j = 0;
    double left_x = x.mass_of(0), left_y = y.mass_of(0);
    x.potential[0] = 0;
    y.potential[0] = between(0, 0);
    while (i + 1 < x.n || j + 1 < y.n) {
        const double piece = std::min(left_x, left_y);
        left_x -= piece;
        left_y -= piece;
        if (i + 1 < x.n && (left_x <= 0 || j + 1 == y.n)) {
            i++;
            x.potential[i] = between(i, j) - y.potential[j];
            left_x = x.mass_of(i);
        } else {
            j++;
            y.potential[j] = between(i, j) - x.potential[i];
            left_y = y.mass_of(j);
        }
    }
}

template <class T> double wasserstein(SortedSide<T>& x, SortedSide<T>& y, double power, double scale) {
    const Transport cost{power, scale};
    if (!x.potential.empty() && x.n && y.n) transport_potentials(x, y, cost);
    if (!x.mass.empty() || !y.mass.empty())
        return transport<T, double>(
            x, y, cost, 1.0, [&](int64_t i) { return x.mass_of(i); }, [&](int64_t j) { return y.mass_of(j); });
    if (x.n != y.n || power != 2)
        return transport<T, int64_t>(
            x, y, cost, 1.0 / (double(x.n) * double(y.n)), [&](int64_t) { return y.n; }, [&](int64_t) { return x.n; });
    double total = 0;
    const T factor = T(2 * scale / double(x.n));
    const bool along = !x.tangent.empty();
    const T *a = along ? x.tangent.data() : x.value.data(), *b = along ? y.tangent.data() : y.value.data();
    for (int64_t i = 0; i < x.n; i++) {
        const double d = double(x.value[i]) - double(y.value[i]);
        total += d * d;
        x.gradient[i] = factor * (a[i] - b[i]);
        y.gradient[i] = -x.gradient[i];
    }
    return total / double(x.n);
}

// A projection that is not a number touches all the others.
template <class T> double spoiled(SortedSide<T>& x, SortedSide<T>& y) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    std::fill(x.gradient.begin(), x.gradient.end(), T(nan));
    std::fill(y.gradient.begin(), y.gradient.end(), T(nan));
    for (auto* side : {&x.potential, &y.potential}) std::fill(side->begin(), side->end(), nan);
    return nan;
}

// 2 E|a - b| - E|a - a'| - E|b - b'| = 2 int (F - G)^2, F and G the distribution functions (Szekely 2003). The
// derivative at an atom of F of mass w is 2 w (G- + G+ - F- - F+), with the limits from both sides.
template <class T> double energy(SortedSide<T>& x, SortedSide<T>& y, double scale) {
    double total = 0, f = 0, g = 0;
    int64_t i = 0, j = 0;
    const bool flat = !x.tangent.empty();  // the derivative is piecewise constant
    const bool potentials = !x.potential.empty();
    double last = 0, height = 0;  // h' = -4 (F - G) in between
    while (i < x.n || j < y.n) {
        const T at = j == y.n || (i < x.n && x.value[i] < y.value[j]) ? x.value[i] : y.value[j];
        if (i || j) {
            total += 2 * (f - g) * (f - g) * (double(at) - last);
            height -= 4 * (f - g) * (double(at) - last);
        }
        last = double(at);
        const int64_t first_x = i, first_y = j;
        double after_f = f, after_g = g;
        while (i < x.n && x.value[i] == at) after_f += x.mass_of(i++);
        while (j < y.n && y.value[j] == at) after_g += y.mass_of(j++);
        if (i == first_x && j == first_y) return spoiled(x, y);
        if (x.mass.empty()) after_f = double(i) / double(x.n);
        if (y.mass.empty()) after_g = double(j) / double(y.n);
        const double force = flat ? 0 : 2 * scale * (g + after_g - f - after_f);
        for (int64_t k = first_x; k < i; k++) x.gradient[k] = T(force * x.mass_of(k));
        for (int64_t k = first_y; k < j; k++) y.gradient[k] = T(-force * y.mass_of(k));
        if (potentials) {
            for (int64_t k = first_x; k < i; k++) x.potential[k] = height;
            for (int64_t k = first_y; k < j; k++) y.potential[k] = -height;
        }
        f = after_f;
        g = after_g;
    }
    return total;
}

}  // namespace gwf::GWF_ISA
