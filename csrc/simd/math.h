// Elementary functions on vectors: 2**x, log2, 1/sqrt, with relative errors near 1e-7 (float) and 2e-16 (double).
// What profiles_generated.h is written in. NaN propagates; 2**x underflows to 0 and overflows to a huge number or inf.
// Functions of double take infinity for what it is. Those of float need not (the fast ones give NaN): problems that
// reach out of float's range are computed in double (pairwise/range.h).
#pragma once
#include "simd/vector.h"

namespace gwf::GWF_ISA {

// ---- powers of two -------------------------------------------------------------------------------------------

template <class T> struct exp2_constants;  // 2**f = 1 + f * (c[0] + c[1] f + ...) on |f| <= 1/2
template <> struct exp2_constants<float> {
    static constexpr int mantissa = 23;
    static constexpr float magic = 12582912.0f;  // 1.5 * 2**23: adding it rounds to an integer
    static constexpr float lowest = -126.0f, highest = 127.0f;
    static constexpr float c[] = {0.6931469776146079f, 0.2402224208276445f, 0.05550733727943232f, 0.00967151276133079f,
                                  0.0013264730964831451f};
};
template <> struct exp2_constants<double> {
    static constexpr int mantissa = 52;
    static constexpr double magic = 6755399441055744.0;  // 1.5 * 2**52
    static constexpr double lowest = -1022.0, highest = 1023.0;
    static constexpr double c[] = {0.6931471805599453,    0.24022650695910097,   0.0555041086648216,
                                   0.009618129107606888,  0.0013333558146416936, 0.0001540353044173605,
                                   1.525273382983612e-05, 1.321544258792169e-06, 1.0178062445845774e-07,
                                   7.072585949269223e-09, 4.4549605981865186e-10};
};

// 2**f for |f| <= 1/2
template <class V> GWF_INLINE V exp2_fraction(V f) {
    using T = scalar_t<V>;
    constexpr auto& c = exp2_constants<T>::c;
    constexpr int n = int(sizeof(c) / sizeof(T));
    V p = splat(c[n - 1]);
#pragma GCC unroll 16
    for (int i = n - 2; i >= 0; i--) p = p * f + c[i];
    return p * f + T(1);
}

// 2**n for integer n in [lowest, highest], as the bits of a float
template <class V> GWF_INLINE V exp2_integer(V n_plus_magic) {
    using T = scalar_t<V>;
    const auto one = as_unsigned<T>(splat(T(1)));  // unsigned: beyond the range the sum wraps, and is not used
    return (V)((as_unsigned<T>(n_plus_magic) << exp2_constants<T>::mantissa) + one);
}

#if defined(__AVX512F__)
GWF_INLINE vec<float> scale_by_exp2(vec<float> a, vec<float> n) { return _mm512_scalef_ps(a, n); }
GWF_INLINE vec<double> scale_by_exp2(vec<double> a, vec<double> n) { return _mm512_scalef_pd(a, n); }

// 2**(k/32): with f = x - k/32 the series needs two terms only
alignas(64) inline constexpr float exp2_table[32] = {
#define GWF_ROW(k) float(__builtin_exp2((k) / 32.0))
    GWF_ROW(0),  GWF_ROW(1),  GWF_ROW(2),  GWF_ROW(3),  GWF_ROW(4),  GWF_ROW(5),  GWF_ROW(6),  GWF_ROW(7),  GWF_ROW(8),
    GWF_ROW(9),  GWF_ROW(10), GWF_ROW(11), GWF_ROW(12), GWF_ROW(13), GWF_ROW(14), GWF_ROW(15), GWF_ROW(16), GWF_ROW(17),
    GWF_ROW(18), GWF_ROW(19), GWF_ROW(20), GWF_ROW(21), GWF_ROW(22), GWF_ROW(23), GWF_ROW(24), GWF_ROW(25), GWF_ROW(26),
    GWF_ROW(27), GWF_ROW(28), GWF_ROW(29), GWF_ROW(30), GWF_ROW(31)
#undef GWF_ROW
};

// minus_x = true computes 2**-x at the same cost.
template <bool minus_x> GWF_INLINE vec<float> exp2_any(vec<float> x) {
    const vec<float> magic = pinned(12582912.0f / 32);
    const vec<float> c1 = pinned(0.6931573297943839f), c2 = pinned(0.24022649739046306f);
    const vec<float> low = load(exp2_table), high = load(exp2_table + 16);
    const vec<float> shifted = minus_x ? magic - x : magic + x;  // the last five bits are the table's index
    const vec<float> nearest = shifted - magic;
    const vec<float> f = minus_x ? x + nearest : x - nearest;
    const vec<float> row = _mm512_permutex2var_ps(low, (__m512i)shifted, high);
    const vec<float> q = minus_x ? (c2 * f - c1) * f : (c2 * f + c1) * f;
    return _mm512_scalef_ps(q * row + row, nearest);  // scalef takes the floor
}
template <bool minus_x> GWF_INLINE vec<double> exp2_any(vec<double> x) {
    if (minus_x) x = -x;
    const vec<double> fraction = _mm512_reduce_pd(x, 8);  // of infinity: 0
    return _mm512_scalef_pd(exp2_fraction(fraction), _mm512_roundscale_pd(x, 8));
}
#else
template <bool minus_x, class V> GWF_INLINE V exp2_any(V x) {
    using T = scalar_t<V>;
    using C = exp2_constants<T>;
    if (minus_x) x = -x;
    const V bounded = smaller(splat(C::highest), x);
    const V shifted = bounded + C::magic;
    const V f = bounded - (shifted - C::magic);
    return zero_below(exp2_fraction(f) * exp2_integer(shifted), x, splat(C::lowest));
}
// n an integer. In two steps: a 2**n may be a number where 2**n alone is none.
template <class V> GWF_INLINE V scale_by_exp2(V a, V n) {
    using T = scalar_t<V>;
    using C = exp2_constants<T>;
    const V bounded = larger(splat(2 * C::lowest), smaller(splat(2 * C::highest), n));
    const V half = (bounded * T(0.5) + C::magic) - C::magic;
    return (a * exp2_integer(half + C::magic)) * exp2_integer((bounded - half) + C::magic);
}
#endif

struct NoShift {};
template <class V> GWF_INLINE V exp2_minus(NoShift, V x) { return exp2_any<true>(x); }
template <class V> GWF_INLINE V exp2_minus(V shift, V x) { return exp2_any<false>(V(shift - x)); }
// Far from the data column - row loses what x has to be compared with: here x goes first, as where the row's shift was
// taken as the largest of (column - x). What exceeds that does so by rounding.
template <class V> struct FarShift {
    V column, row;
};
template <class V> GWF_INLINE V exp2_minus(FarShift<V> shift, V x) {
    return exp2_any<false>(smaller(V{}, V((shift.column - rounded(x)) - shift.row)));
}
template <class V> GWF_INLINE V times_exp2(V value, NoShift) { return value; }
template <class V> GWF_INLINE V times_exp2(V value, FarShift<V> shift) {
    return value * exp2_any<false>(smaller(V{}, V(shift.column - shift.row)));
}
template <class V> GWF_INLINE V times_exp2(V value, V shift) { return value * exp2_any<false>(shift); }

// ---- e^x and its kin ----------------------------------------------------------------------------------------

// e^x = 2 half (1 + rest) with half a power of two and rest of full relative accuracy near x = 0. Half of it, because
// the largest numbers are below their nearest power of two.
template <class V> struct Exponential {
    using T = scalar_t<V>;
    V half, rest;
    GWF_INLINE V value() const { return T(2) * (half + half * rest); }
    GWF_INLINE V minus_one() const { return T(2) * ((half - T(0.5)) + half * rest); }
};

template <class V> GWF_INLINE Exponential<V> exponential(V x) {
    using T = scalar_t<V>;
    constexpr bool single = sizeof(T) == 4;
    constexpr T least = single ? T(-104) : T(-746), most = single ? T(89) : T(710);  // 0 and infinity
    constexpr T log2e = T(1.4426950408889634), magic = exp2_constants<T>::magic;
    constexpr T ln2_high = single ? T(0.693359375) : T(0.69314718055966295651160180568695068359375);
    constexpr T ln2_low = single ? T(-2.12194440e-4) : T(2.8235290563031577122588448175013436025525412068e-13);
    const V bounded = larger(splat(least), smaller(splat(most), x));
    const V n = (bounded * log2e + magic) - magic;
    const V r = (bounded - n * ln2_high) - n * ln2_low;
    // exp2_constants<float> trade the last bit for one term less; a network's sums would show it
    constexpr T cephes[] = {T(1.9875691500e-4), T(1.3981999507e-3), T(8.3334519073e-3),
                            T(4.1665795894e-2), T(1.6666665459e-1), T(5.0000001201e-1)};
    V rest;
    if constexpr (single) {
        rest = splat(cephes[0]);
#pragma GCC unroll 16
        for (int i = 1; i < 6; i++) rest = rest * r + cephes[i];
        rest = rest * (r * r) + r;
    } else {
        const V f = r * log2e;
        constexpr auto& c = exp2_constants<T>::c;
        constexpr int terms = int(sizeof(c) / sizeof(T));
        rest = splat(c[terms - 1]);
#pragma GCC unroll 16
        for (int i = terms - 2; i >= 0; i--) rest = rest * f + c[i];
        rest *= f;
    }
    return {scale_by_exp2(splat(T(0.5)), n), rest};
}

// ---- roots and inverses --------------------------------------------------------------------------------------

template <class V> GWF_INLINE V inverse(V u) { return scalar_t<V>(1) / u; }

// Roots of floats: the hardware's guess y of 1/sqrt(u) and one Newton step, y (3 - u y^2) / 2.
#if defined(__AVX512F__)
GWF_INLINE vec<float> rsqrt_guess(vec<float> u) { return _mm512_rsqrt14_ps(u); }
#elif defined(__AVX2__)
GWF_INLINE vec<float> rsqrt_guess(vec<float> u) { return _mm256_rsqrt_ps(u); }
#endif
template <class T> inline constexpr bool guesses_roots = sizeof(T) == 4 && vector_bytes > 16;

template <class V> GWF_INLINE V two_rsqrt(V u) {  // 2 / sqrt(u), u > 0: the step without its half
    using T = scalar_t<V>;
    if constexpr (guesses_roots<T>) {
        const V y = rsqrt_guess(u);
        return y * (T(3) - (u * y) * y);
    } else {
        return T(2) / square_root(u);
    }
}

// Squared distances below this count as coincident points.
template <class T> inline constexpr T tiny = sizeof(T) == 4 ? T(1e-30) : T(1e-290);

template <class V> GWF_INLINE V root(V t) {
    using T = scalar_t<V>;
    if constexpr (guesses_roots<T>) {
        const V y = rsqrt_guess(larger(splat(tiny<T>), t)), h = t * y;
        return (h * T(0.5)) * (T(3) - h * y);
    } else {
        return square_root(larger(V{}, t));
    }
}

// The same, where the inverse is known.
template <class V> GWF_INLINE V root_from(V t, V inverse_root) {
    if constexpr (sizeof(t[0]) == 4)
        return inverse_root * t;
    else
        return t < infinite<V> ? V(inverse_root * t) : t;
}

template <class V> GWF_INLINE V rsqrt0(V t) {
    const V bound = splat(tiny<scalar_t<V>>);
    return zero_below(V(scalar_t<V>(0.5) * two_rsqrt(larger(bound, t))), t, bound);
}

// ---- logarithms and powers -----------------------------------------------------------------------------------

// u = 2**n * m with m in [sqrt(1/2), sqrt(2)); returns log2(m) and sets n. u > 0 and normal; else they are anything.
template <class V> GWF_INLINE V log2_parts(V u, V& n) {
    using T = scalar_t<V>;
    constexpr int mantissa = exp2_constants<T>::mantissa;
    using I = integer_of<T>;
    constexpr I root_half = sizeof(T) == 4 ? I(0x3f3504f3) : I(0x3fe6a09e667f3bcd);
    const auto exponent = (bits<T>)(as_unsigned<T>(u) - std::make_unsigned_t<I>(root_half)) >> mantissa;
    n = __builtin_convertvector(exponent, V);
    const V m = (V)(as_unsigned<T>(u) - ((unsigned_bits<T>)exponent << mantissa));
    const V z = (m - T(1)) / (m + T(1)), w = z * z;
    V q;
    if constexpr (sizeof(T) == 4) {
        q = ((T(0.43171769745887384) * w + T(0.5767151860190234)) * w + T(0.96179883880211)) * w +
            T(2.8853900798033365);
    } else {
        constexpr T c[] = {0.19133171202266566, 0.1911392479842068, 0.22198980761494067,
                           0.26230754806401313, 0.3205989045353651, 0.41219858307348606,
                           0.5770780163556934,  0.9617966939259754, 2.8853900817779268};
        q = splat(c[0]);
#pragma GCC unroll 16
        for (int i = 1; i < 9; i++) q = q * w + c[i];
    }
    return z * q;
}

template <class V> GWF_INLINE V log2_of(V u) {
    V n;
    const V l = log2_parts(u, n);
    return u < infinite<V> ? V(n + l) : u;  // infinity and NaN stay what they are
}

template <class V> GWF_INLINE V log0(V t) {  // natural logarithm; 0 for coincident points
    using T = scalar_t<V>;
    const V bound = splat(tiny<T>);
    return zero_below(log2_of(larger(bound, t)) * T(0.6931471805599453), t, bound);
}

// t**e for t >= 0, with 0**e = 0 also for e < 0, and 0**0 = 1
template <class V> GWF_INLINE V pow0(V t, V e) {
    using T = scalar_t<V>;
    // exact where products are enough (e is the same in all lanes); half-integers take the root
    const T power_of_root = 2 * e[0];
    if (power_of_root == T(0)) return splat(T(1));
    if (power_of_root == T(2)) return t;
    if (power_of_root == T(4)) return t * t;
    if (power_of_root == T(1)) return root(t);
    if (power_of_root == T(3)) return t * root(t);
    if (power_of_root == T(-1)) return rsqrt0(t);
    const V bound = splat(tiny<T>);
    V n;
    const V l = log2_parts(larger(bound, t), n);
    const V product = rounded(V(e * n));  // large; its rounding error is kept
    const V part = e * l + (e * n - product);
    constexpr T most = 3 * exp2_constants<T>::highest;  // beyond which the power is infinite or 0
    const V bounded = larger(splat(-most), smaller(splat(most), V(product + part)));
    const V whole = (bounded + exp2_constants<T>::magic) - exp2_constants<T>::magic;
    const V rest = (product - whole) + part;
    const V power = zero_below(scale_by_exp2(exp2_any<false>(rest), whole), t, bound);
    return t < infinite<V> ? power : e[0] > T(0) ? t : V(T(1) / t);  // infinity, and NaN, which passes
}

}  // namespace gwf::GWF_ISA
