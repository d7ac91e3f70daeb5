// A tile is the block of pairs between R rows (lanes of NB vectors) and up to TJ columns, held in the first-level
// cache as [column][row]. Distances are produced into a tile, profiles are evaluated on it, sums consume it: the cost
// of a new profile, reduction or dimension adds, it does not multiply. Coordinates here are centred and scaled, so
// that t = |x - y|^2 is the profile's own variable.
#pragma once
#include <algorithm>
#include <cmath>

#include "pairwise/pairwise.h"
#include "simd/math.h"

namespace gwf::GWF_ISA {

#include "pairwise/profiles_generated.h"

template <class T> inline constexpr int NB = vector_bytes == 64 ? 3 : 2;  // vectors of rows
template <class T> inline constexpr int R = NB<T> * lanes<T>;             // rows of a tile
inline constexpr int TJ = 96;                                             // columns of a tile
inline constexpr int PJ = vector_bytes == 64 ? 8 : 6;                     // columns of a packed panel
static_assert(TJ % PJ == 0);

// The base-2 log-weight of a column that does not count; finite, so that differences stay numbers.
template <class T> inline constexpr T masked = sizeof(T) == 4 ? T(-1e30) : T(-1e290);

#define GWF_LANES for (int k = 0; k < NB<T>; k++)

// ---- squared distances ---------------------------------------------------------------------------------------

// x [D][R], y [n][stride]
template <int D, class T> void distances_small(const T* x, const T* y, int stride, int n, T* t) {
    vec<T> xv[NB<T>][D];
    for (int d = 0; d < D; d++) GWF_LANES xv[k][d] = load(x + d * R<T> + k * lanes<T>);
    for (int j = 0; j < n; j++, y += stride, t += R<T>) {
        vec<T> s[NB<T>];
#pragma GCC unroll 4
        for (int d = 0; d < D; d++) GWF_LANES {
                const vec<T> e = xv[k][d] - y[d];
                s[k] = d == 0 ? e * e : s[k] + e * e;
            }
        GWF_LANES store(t + k * lanes<T>, s[k]);
    }
}

// Coordinates are summed in chunks, so that rounding does not grow with D. Whoever sums squares for the dot form below
// does it in this order.
inline constexpr int64_t coordinate_chunk = 64;
// points [D][Count] -> sums [Count]
template <int Count, class T> void chunked_sums_of_squares(const T* points, int64_t D, T* sums) {
    T total[Count] = {};
    for (int64_t d0 = 0; d0 < D; d0 += coordinate_chunk) {
        T sum[Count] = {};
        for (int64_t d = d0; d < std::min(D, d0 + coordinate_chunk); d++)
            for (int q = 0; q < Count; q++) sum[q] = multiply_add(points[d * Count + q], points[d * Count + q], sum[q]);
        for (int q = 0; q < Count; q++) total[q] += sum[q];
    }
    std::copy(total, total + Count, sums);
}

// How the distance of points in many dimensions is formed. Products: |x|^2 + |y|^2 - 2 x.y, one operation a coordinate
// instead of two; the product is summed from 0 and in the order of the norms, so that a point is at distance exactly 0
// from itself. Mended: the same, and by differences where the points are near, for what is not smooth at 0: the error
// of a product is relative to the norms, not to the distance.
enum class Form { differences, products, mended };
inline constexpr double near_points = 0.125;  // t over the sum of the norms; less is rare in many dimensions

template <class T> vec<T> squared_differences(const T* x, const T* column, int64_t D) {
    vec<T> total{};
    for (int64_t d0 = 0; d0 < D; d0 += coordinate_chunk) {
        vec<T> sum{};
        for (int64_t d = d0; d < std::min(D, d0 + coordinate_chunk); d++) {
            const vec<T> e = load(x + d * R<T>) - column[d * PJ];
            sum += e * e;
        }
        total += sum;
    }
    return total;
}

// x [D][R], panels [n / PJ][D][PJ]
template <Form F, class T>
void distances_wide(const T* x, const T* x_norm, const T* panels, const T* y_norm, int64_t D, int n, T* t) {
    constexpr bool Dot = F != Form::differences;
    for (int j = 0; j < n; j += PJ, panels += D * PJ)
        for (int64_t d0 = 0; d0 < D; d0 += coordinate_chunk) {
            const int64_t d1 = std::min(D, d0 + coordinate_chunk);
            vec<T> s[PJ][NB<T>];
#pragma GCC unroll 8
            for (int q = 0; q < PJ; q++) GWF_LANES s[q][k] = vec<T>{};
            const T *xd = x + d0 * R<T>, *yd = panels + d0 * PJ;
#pragma GCC unroll 4
            for (int64_t d = d0; d < d1; d++, xd += R<T>, yd += PJ) {
                vec<T> xv[NB<T>];
                GWF_LANES xv[k] = load(xd + k * lanes<T>);
                __builtin_prefetch(yd + 32 * PJ);  // the panels stream from the second-level cache or beyond
#pragma GCC unroll 8
                for (int q = 0; q < PJ; q++) {
                    const vec<T> yv = pinned(yd[q]);
                    GWF_LANES {
                        const vec<T> e = xv[k] - yv;
                        s[q][k] = Dot ? s[q][k] + xv[k] * yv : s[q][k] + e * e;
                    }
                }
            }
#pragma GCC unroll 8
            for (int q = 0; q < PJ; q++) GWF_LANES {
                    T* at = t + (j + q) * R<T> + k * lanes<T>;
                    vec<T> v = s[q][k];
                    if (d0 > 0) v += load(at);
                    if (Dot && d1 == D) {
                        const vec<T> norms = load(x_norm + k * lanes<T>) + y_norm[j + q];
                        v = larger(vec<T>{}, vec<T>(norms - (v + v)));
                        if constexpr (F == Form::mended)
                            if (any_less(v, vec<T>(norms * T(near_points)))) [[unlikely]]
                                v = squared_differences(x + k * lanes<T>, panels + q, D);
                    }
                    store(at, v);
                }
        }
}

// sum_d (x - y)_d (dx - dy)_d; null tangents are zero. x, dx [D][R]; y, dy [n][D]
template <class T> void difference_products(const T* x, const T* dx, const T* y, const T* dy, int64_t D, int n, T* t) {
    for (int j = 0; j < n; j++, y += D, t += R<T>) {
        vec<T> s[NB<T>] = {};
        for (int64_t d = 0; d < D; d++) GWF_LANES {
                const int64_t at = d * R<T> + k * lanes<T>;
                vec<T> e = dx ? load(dx + at) : vec<T>{};
                if (dy) e -= dy[j * D + d];
                s[k] += (load(x + at) - y[d]) * e;
            }
        GWF_LANES store(t + k * lanes<T>, s[k]);
    }
}

// The same for two tangents: sum_d (dx - dy)_d (ex - ey)_d
template <class T> void tangent_products(const T* dx, const T* dy, const T* ex, const T* ey, int64_t D, int n, T* t) {
    for (int j = 0; j < n; j++, t += R<T>) {
        vec<T> s[NB<T>] = {};
        for (int64_t d = 0; d < D; d++) GWF_LANES {
                const int64_t at = d * R<T> + k * lanes<T>;
                vec<T> u = dx ? load(dx + at) : vec<T>{}, v = ex ? load(ex + at) : vec<T>{};
                if (dy) u -= dy[j * D + d];
                if (ey) v -= ey[j * D + d];
                s[k] += u * v;
            }
        GWF_LANES store(t + k * lanes<T>, s[k]);
    }
}

// t (+)= sum_c a_c b_c; a [C][R], b [n][C]; either null = zero
template <class T> void channel_products(const T* a, const T* b, int64_t C, int n, bool accumulate, T* t) {
    for (int j = 0; j < n; j++, t += R<T>) {
        vec<T> s[NB<T>] = {};
        if (accumulate) GWF_LANES s[k] = load(t + k * lanes<T>);
        if (a && b)
            for (int64_t c = 0; c < C; c++) GWF_LANES s[k] += load(a + c * R<T> + k * lanes<T>) * b[j * C + c];
        GWF_LANES store(t + k * lanes<T>, s[k]);
    }
}

// ---- profiles on a tile --------------------------------------------------------------------------------------

// A kernel as the tiles see it: the profile of a part is evaluated at ratio * t.
template <class T> struct TileKernel {
    struct Part {
        int profile;
        T ratio, parameter, coefficient[4];  // coefficient * ratio**order; of a single term ratio**order
    };
    std::vector<Part> parts;
    double scale;        // of the coordinates
    double coefficient;  // of a single term, applied to the result; 1 for a mixture
    bool fits;           // all of these are normal numbers of T
    bool decaying;       // every term is positive and falls with distance
    bool smooth;         // no term is singular or has a kink at 0
    bool scale_free;     // no term has a bandwidth
    T sharpest = 0;      // the largest ratio
    bool single() const { return parts.size() == 1; }
    bool plain() const { return single() && parts[0].ratio == 1; }
};

// Row and column shifts in base 2: values are multiplied by 2**(column[j] - row[i]).
template <class T> struct Shifts {
    const T *row, *column;
};
enum class Shift { none, near, far };  // far: FarShift

template <class P, int K, bool Plain, Shift Shifted, class T>
void evaluate_part(const typename TileKernel<T>::Part& part, bool accumulate, const T* t, Shifts<T> shifts, int n,
                   T* const* f) {
    const vec<T> ratio = splat(part.ratio), parameter = splat(part.parameter);
    vec<T> row[NB<T>];
    GWF_LANES row[k] = Shifted != Shift::none ? load(shifts.row + k * lanes<T>) : vec<T>{};
    for (int j = 0; j < n; j++) GWF_LANES {
            const int64_t at = int64_t(j) * R<T> + k * lanes<T>;
            vec<T> value[K + 1], v = load(t + at);
            if (!Plain) v *= ratio;
            if constexpr (Shifted == Shift::far)
                P::template jet<K>(rounded(v), parameter, FarShift<vec<T>>{splat(shifts.column[j]), row[k]}, value);
            else if constexpr (Shifted == Shift::near)
                P::template jet<K>(v, parameter, vec<T>(splat(shifts.column[j]) - row[k]), value);
            else
                P::template jet<K>(v, parameter, NoShift{}, value);
#pragma GCC unroll 4
            for (int o = 0; o <= K; o++) {
                if (!Plain) value[o] *= part.coefficient[o];
                if (!Plain && accumulate) value[o] += load(f[o] + at);
                store(f[o] + at, value[o]);
            }
        }
}

// f[o] = d^o k / dt^o on the tile for o = 0..K. f[K] may be t itself.
template <int K, Shift Shifted, class T>
void evaluate(const TileKernel<T>& kernel, const T* t, Shifts<T> shifts, int n, T* const* f) {
    const bool plain = kernel.plain();
    bool accumulate = false;
    for (const auto& part : kernel.parts) {
        switch (part.profile) {
#define GWF_CASE(id, P)                                                             \
    case id:                                                                        \
        if (plain)                                                                  \
            evaluate_part<P, K, true, Shifted>(part, false, t, shifts, n, f);       \
        else                                                                        \
            evaluate_part<P, K, false, Shifted>(part, accumulate, t, shifts, n, f); \
        break;
            GWF_FOR_EACH_PROFILE(GWF_CASE)
#undef GWF_CASE
        }
        accumulate = true;
    }
}

// bound[i] = max(bound[i], max_j column_shift[j] - exponent(t_ij)) over the terms: the log2 of the largest summand, up
// to the prefactors. self is the column index of row 0's own point in this tile, or beyond it where pairs are all
// different.
template <class T>
void bound_exponents(const TileKernel<T>& kernel, const T* t, const T* column_shift, int n, int64_t self, T* bound) {
    for (const auto& part : kernel.parts)
        for (int j = 0; j < n; j++) GWF_LANES {
                const vec<T> v = rounded(vec<T>(load(t + int64_t(j) * R<T> + k * lanes<T>) * part.ratio));
                const vec<T> p = splat(part.parameter);
                vec<T> x;
                switch (part.profile) {
#define GWF_CASE(id, P)        \
    case id:                   \
        x = P::exponent(v, p); \
        break;
                    GWF_FOR_EACH_PROFILE(GWF_CASE)
#undef GWF_CASE
                    default:
                        x = vec<T>{};
                }
                vec<T> u = splat(column_shift[j]) - rounded(x);
                const int64_t own = j - self - k * lanes<T>;
                if (own >= 0 && own < lanes<T>) u[own] = masked<T>;
                store(bound + k * lanes<T>, larger(u, load(bound + k * lanes<T>)));
            }
}

// ---- sums over a tile ----------------------------------------------------------------------------------------

// total += sum_j weight_j value(t_j), for a kernel of one term; values are not kept.
template <class P, bool Plain, class T>
void sum_part(const typename TileKernel<T>::Part& part, const T* t, const T* weight, int n, T* total) {
    const vec<T> p = splat(part.parameter), ratio = splat(part.ratio);
    vec<T> s[NB<T>] = {};
    for (int j = 0; j < n; j++) GWF_LANES {
            vec<T> value, v = load(t + int64_t(j) * R<T> + k * lanes<T>);
            if (!Plain) v *= ratio;
            P::template jet<0>(v, p, NoShift{}, &value);
            s[k] += value * weight[j];
        }
    GWF_LANES store(total + k * lanes<T>, load(total + k * lanes<T>) + s[k]);
}

// total[c] += sum_j f_j v_jc for NC neighbouring channels; v [n][stride], total [NC][R]
template <int NC, class T> void sum_channels(const T* f, const T* v, int64_t stride, int n, T* total) {
    vec<T> s[NC][NB<T>];
#pragma GCC unroll 8
    for (int c = 0; c < NC; c++) GWF_LANES s[c][k] = vec<T>{};
#pragma GCC unroll 2
    for (int j = 0; j < n; j++, f += R<T>, v += stride) {
        vec<T> fv[NB<T>];
        GWF_LANES fv[k] = load(f + k * lanes<T>);
        if constexpr (NC == PJ) __builtin_prefetch(v + stride + PJ);
#pragma GCC unroll 8
        for (int c = 0; c < NC; c++) {
            const vec<T> vc = pinned(v[c]);
            GWF_LANES s[c][k] += fv[k] * vc;
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < NC; c++) GWF_LANES {
            T* at = total + c * R<T> + k * lanes<T>;
            store(at, load(at) + s[c][k]);
        }
}

// total[c] += sum_j f_j v_jc; v [n][stride] with C channels, null = ones; total [C][R]
template <class T> void sum_channels(const T* f, const T* v, int64_t stride, int64_t C, int n, T* total) {
    static constexpr T one = 1;
    if (!v) return sum_channels<1>(f, &one, 0, n, total);
    for (; C >= PJ; C -= PJ, v += PJ, total += PJ * R<T>) sum_channels<PJ>(f, v, stride, n, total);
    switch (C) {
        case 1:
            return sum_channels<1>(f, v, stride, n, total);
        case 2:
            return sum_channels<2>(f, v, stride, n, total);
        case 3:
            return sum_channels<3>(f, v, stride, n, total);
        case 4:
            return sum_channels<4>(f, v, stride, n, total);
        case 5:
            return sum_channels<5>(f, v, stride, n, total);
        case 6:
            return sum_channels<6>(f, v, stride, n, total);
        case 7:
            return sum_channels<7>(f, v, stride, n, total);
    }
}

// total[d] += sum_j f_j (x - y_j)_d; x [D][R], y [n][stride], null y: the difference is x itself (or 0 without x).
template <class T> void sum_differences(const T* f, const T* x, const T* y, int stride, int64_t D, int n, T* total) {
    for (int64_t d = 0; d < D; d++) {
        vec<T> s[NB<T>] = {}, xv[NB<T>];
        GWF_LANES xv[k] = x ? load(x + d * R<T> + k * lanes<T>) : vec<T>{};
        for (int j = 0; j < n; j++) {
            const vec<T> yv = splat(y ? y[int64_t(j) * stride + d] : T(0));
            GWF_LANES s[k] += load(f + int64_t(j) * R<T> + k * lanes<T>) * (xv[k] - yv);
        }
        GWF_LANES {
            T* at = total + d * R<T> + k * lanes<T>;
            store(at, load(at) + s[k]);
        }
    }
}

}  // namespace gwf::GWF_ISA
