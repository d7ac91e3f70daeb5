// The elementwise functions of mlp.h with two derivatives. Unused parts are dropped by the compiler.
#pragma once
#include "mlp/mlp.h"
#if !defined(GWF_DEVICE)  // gpu/device_math.h has the same on one number
#include "simd/math.h"
#endif

namespace gwf::GWF_ISA {

template <class V> struct Jet {
    V value, first, second;
};

template <class V> GWF_INLINE V magnitude(V x) { return larger(V(-x), x); }

template <class V> GWF_INLINE V natural_log(V u) { return log2_of(u) * scalar_t<V>(0.6931471805599453); }

// log(1 + e) for 0 <= e <= 1, accurate for small e: the quotient undoes the rounding of 1 + e
template <class V> GWF_INLINE V log1p_fraction(V e) {
    using T = scalar_t<V>;
    const V u = T(1) + e, kept = u - T(1);
    return kept == T(0) ? e : V(natural_log(u) * (e / kept));
}

template <class V> struct Logistic {  // sigmoid(x), sigmoid(-x) and log(1 + e^x), none of which overflows
    V up, down, softplus;
};

template <class V> GWF_INLINE Logistic<V> logistic(V x) {
    using T = scalar_t<V>;
    const V e = exponential(V(-magnitude(x))).value();
    const V large = T(1) / (T(1) + e), small = e * large;
    return {x < T(0) ? small : large, x < T(0) ? large : small, larger(V{}, x) + log1p_fraction(e)};
}

// ---- the functions
// ---------------------------------------------------------------------------------------------------

template <Function f, class V> GWF_INLINE Jet<V> evaluate(V v, scalar_t<V> p) {
    using T = scalar_t<V>;
    const V one = splat(T(1)), zero{};
    if constexpr (f == Function::identity) {
        return {v + p, one, zero};
    } else if constexpr (f == Function::leaky) {
        return {v > zero ? v : V(v * p), v > zero ? one : splat(p), zero};
    } else if constexpr (f == Function::elu) {
        const auto e = exponential(smaller(zero, v));
        const V slope = e.value() * p;
        return {v > zero ? v : V(e.minus_one() * p), v > zero ? one : slope, v > zero ? zero : slope};
    } else if constexpr (f == Function::silu) {
        const auto s = logistic(v);
        const V ds = s.up * s.down;
        return {v * s.up, s.up + v * ds, ds * (T(2) + v * (s.down - s.up))};
    } else if constexpr (f == Function::softplus) {
        const auto s = logistic(v);
        return {s.softplus + p, s.up, s.up * s.down};
    } else if constexpr (f == Function::tanh) {
        const auto e = exponential(V(T(-2) * magnitude(v)));
        const V inverse = T(1) / (T(1) + e.value()), t = -e.minus_one() * inverse, signed_t = v < zero ? V(-t) : t;
        const V first = T(4) * e.value() * inverse * inverse;
        return {signed_t * p, first * p, T(-2) * signed_t * first * p};
    } else if constexpr (f == Function::sigmoid) {
        const auto s = logistic(v);
        const V first = s.up * s.down * p;
        return {s.up * p, first, first * (s.down - s.up)};
    } else if constexpr (f == Function::log_sigmoid) {
        const auto s = logistic(V(-v));
        return {p - s.softplus, s.up, -s.up * s.down};
    } else if constexpr (f == Function::minus_exp) {
        const auto e = exponential(V(-v));
        // no cancellation for either of the two constants in use, 0 and 1
        return {p == T(0) ? V(-e.value()) : V((p - T(1)) - e.minus_one()), e.value(), -e.value()};
    } else if constexpr (f == Function::square) {
        return {v * v, T(2) * v, splat(T(2))};
    } else if constexpr (f == Function::expm1) {
        const auto e = exponential(v);
        return {e.minus_one(), e.value(), e.value()};
    } else if constexpr (f == Function::exp_shifted) {
        const V e = exponential(V(v - p)).value();
        return {e, e, e};
    } else if constexpr (f == Function::exp_tamed) {
        const V e = exponential(smaller(splat(p), v)).value();
        return {e + e * larger(zero, V(v - p)), e, zero};
    } else if constexpr (f == Function::parabola) {
        const V t = larger(splat(T(-2)), v);
        return {t * t * T(0.25) + t, t * T(0.5) + T(1), zero};
    } else if constexpr (f == Function::exp_half) {
        const auto e = exponential(V(v * T(-0.5)));
        return {T(-2) * e.minus_one(), e.value(), T(-0.5) * e.value()};
    } else if constexpr (f == Function::alpha_power) {
        const V base = larger(zero, (p - T(1)) * v + T(1));
        const V first = pow0(base, splat(T(1) / (p - T(1))));
        return {(first * base - T(1)) / p, first, zero};
    } else if constexpr (f == Function::alpha_bounded) {
        const auto s = logistic(V(-v));
        const V base = (T(1) - p) * s.softplus;
        const V power = pow0(base, splat(T(1) / (p - T(1))));
        return {(power * base - T(1)) / p, power * s.up, zero};
    } else if constexpr (f == Function::above) {
        return {larger(splat(-p), v) + p, v > splat(-p) ? one : zero, zero};
    } else if constexpr (f == Function::below) {
        return {smaller(splat(p), v) - p, v < splat(p) ? one : zero, zero};
    } else if constexpr (f == Function::ramp_power) {
        const V base = larger(zero, v), first = pow0(base, splat(p - T(1)));
        return {first * base / p, first, zero};
    } else {
        static_assert(f == Function::entropy_power);
        const V base = larger(zero, (p - T(1)) * v + T(1)) / p;
        const V first = pow0(base, splat(T(1) / (p - T(1))));
        return {first * base, first, zero};
    }
}

// Calls body with the function as a compile-time constant.
template <bool objectives = true, class Body> GWF_INLINE void with_function(Function f, Body&& body) {
#define GWF_CASE(name)   \
    case Function::name: \
        return body(std::integral_constant<Function, Function::name>{})
    switch (f) {
        GWF_CASE(identity);
        GWF_CASE(leaky);
        GWF_CASE(elu);
        GWF_CASE(silu);
        GWF_CASE(softplus);
        GWF_CASE(tanh);
        GWF_CASE(sigmoid);
        GWF_CASE(log_sigmoid);
        GWF_CASE(minus_exp);
        GWF_CASE(square);
        GWF_CASE(expm1);
        default:
            break;
    }
    if constexpr (objectives) {
        switch (f) {
            GWF_CASE(exp_shifted);
            GWF_CASE(exp_tamed);
            GWF_CASE(parabola);
            GWF_CASE(exp_half);
            GWF_CASE(alpha_power);
            GWF_CASE(alpha_bounded);
            GWF_CASE(entropy_power);
            GWF_CASE(above);
            GWF_CASE(below);
            GWF_CASE(ramp_power);
            default:
                break;
        }
    }
#undef GWF_CASE
}

}  // namespace gwf::GWF_ISA
