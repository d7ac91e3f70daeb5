// How far the points of a problem reach decides how it is computed: with which scale of the coordinates, and whether in
// float at all.
#pragma once
#include <cmath>
#include <limits>

#include "pairwise/tile.h"

namespace gwf::GWF_ISA {

// The squared scale is that of the first term, so that t is its profile's own variable; or the power of two next to it,
// and then each profile takes a ratio times t.
template <class T> TileKernel<T> tile_kernel(const std::vector<Term>& terms, bool power_of_two) {
    struct Traits {
        double unit;
        bool decaying, smooth;
    };
#define GWF_TRAITS(id, P) {P::unit, P::positive, P::smooth},
    static constexpr Traits traits[] = {GWF_FOR_EACH_PROFILE(GWF_TRAITS)};
#undef GWF_TRAITS
    auto normal = [](double value) {  // with room for a sum of them
        return value == 0 || (std::abs(value) > 16.0 * std::numeric_limits<T>::min() &&
                              std::abs(value) < std::numeric_limits<T>::max() / 1e6);
    };
    TileKernel<T> kernel;
    auto scale = [](const Term& term) { return std::sqrt(traits[term.profile].unit) / term.bandwidth; };
    kernel.scale = scale(terms[0]);
    if (power_of_two) kernel.scale = std::exp2(std::round(std::log2(kernel.scale)));
    kernel.decaying = kernel.smooth = kernel.scale_free = true;
    kernel.fits = normal(kernel.scale);
    kernel.coefficient = terms.size() == 1 ? terms[0].coefficient : 1.0;
    for (const Term& term : terms) {
        const double root = scale(term) / kernel.scale, ratio = root * root;
        typename TileKernel<T>::Part part{term.profile, T(ratio), T(term.parameter), {}};
        for (int o = 0; o < 4; o++) {
            const double coefficient = (terms.size() == 1 ? 1.0 : term.coefficient) * std::pow(ratio, o);
            part.coefficient[o] = T(coefficient);
            kernel.fits &= normal(coefficient) && normal(ratio);
        }
        kernel.parts.push_back(part);
        kernel.sharpest = std::max(kernel.sharpest, T(ratio));
        kernel.decaying &= traits[term.profile].decaying;
        kernel.smooth &= traits[term.profile].smooth;
        kernel.scale_free &= !traits[term.profile].decaying;
    }
    return kernel;
}

// Coordinates that are scaled before they are subtracted are rounded by as much as they are large, unless the scale is
// a power of two: for points that spread over many bandwidths, and where the direction of a short difference counts.
template <class T> struct KernelForms {
    TileKernel<T> close, spread;
    explicit KernelForms(const std::vector<Term>& terms)
        : close(tile_kernel<T>(terms, false)), spread(tile_kernel<T>(terms, true)) {}
};
inline constexpr double close_reach = 8;  // in the kernel's units: what close may lose is half a digit

// max |x_d - c_d| over points [n][D]; infinity counts, NaN does not (it passes through everything by itself).
template <class T> T largest_offset(const T* points, int64_t n, int64_t D, const T* centre) {
    constexpr int64_t L = lanes<T>, most = 8;
    vec<T> largest{};
    T rest = 0;
    auto see = [&](T value) { rest = std::abs(value) > rest ? std::abs(value) : rest; };
    auto see_vector = [&](vec<T> v) { largest = larger(v, larger(vec<T>(-v), largest)); };
    if (D <= most) {  // D vectors hold whole points
        T pattern[most * L];
        for (int64_t at = 0; at < D * L; at++) pattern[at] = centre[at % D];
        const int64_t whole = n / L * L * D;
        for (int64_t at = 0; at < whole; at += D * L)
            for (int64_t v = 0; v < D * L; v += L) see_vector(load(points + at + v) - load(pattern + v));
        for (int64_t at = whole; at < n * D; at++) see(points[at] - centre[at % D]);
    } else {
        for (int64_t i = 0; i < n; i++, points += D) {
            for (int64_t d = 0; d + L <= D; d += L) see_vector(load(points + d) - load(centre + d));
            for (int64_t d = D / L * L; d < D; d++) see(points[d] - centre[d]);
        }
    }
    for (int64_t l = 0; l < L; l++) see(largest[l]);
    return rest;
}

// The largest base-2 exponent that the profiles have at t.
template <class T> double largest_exponent(const TileKernel<T>& kernel, double t) {
    double largest = 0;
    for (const auto& part : kernel.parts) switch (part.profile) {
#define GWF_CASE(id, P)                                                                                               \
    case id:                                                                                                          \
        largest = std::max<double>(largest, P::exponent(splat(T(t * double(part.ratio))), splat(part.parameter))[0]); \
        break;
            GWF_FOR_EACH_PROFILE(GWF_CASE)
#undef GWF_CASE
        }
    return largest;
}

// What a problem asks for.
template <class T> struct Choice {
    const TileKernel<T>* kernel;  // null: a wider type
    bool far = false;             // exponents of log-domain sums are so large that their order of subtraction matters
};

// reach: the largest |x_d - c_d|; shift: the largest exponent beside the kernel's own, of a sum in the log domain; < 0:
// there is none. slopes: derivatives are wanted; curvatures: beyond the first.
template <class T>
Choice<T> choose_kernel(const KernelForms<T>& forms, int64_t D, double reach, double shift, bool slopes,
                        bool curvatures) {
    constexpr bool widest = sizeof(T) == 8;
    // Slopes of a kinked kernel depend on the direction of a difference however short, its values where powers may be
    // negative on its size; those of a mixture on its sharpest term.
    const double sharp = reach * forms.close.scale * std::sqrt(std::max<double>(forms.close.sharpest, 1));
    const bool rounds = sharp > close_reach || ((slopes || !forms.close.decaying) && !forms.close.smooth);
    const TileKernel<T>& kernel = rounds && !forms.close.scale_free ? forms.spread : forms.close;
    const double units = reach * kernel.scale, t = 4 * double(D) * units * units;
    const double largest = double(std::numeric_limits<T>::max()) / 8;
    // Beyond infinity, infinite distances; beneath tiny, distances that are none; terms that no number of this type
    // has.
    const double least = kernel.smooth && !curvatures ? 1e-16 : 1e-6;
    // Far out, where a power of r is a number of this type, those of its slopes and curvatures may be none.
    const double most = !slopes ? std::numeric_limits<double>::infinity() : curvatures ? 1e6 : 1e12;
    const bool fits = kernel.fits && units <= most && t <= largest && t * double(kernel.sharpest) <= largest &&
                      (reach == 0 || units * std::sqrt(std::min<double>(kernel.sharpest, 1)) >= least);
    if (!widest && !fits) return {nullptr};
    if (shift < 0) return {&kernel};
    const double exponents = (t <= largest ? largest_exponent(kernel, t) : t) + shift;
    if (!widest && !(exponents <= 1e7)) return {nullptr};
    return {&kernel, widest && !(exponents <= 1e14)};
}

}  // namespace gwf::GWF_ISA
