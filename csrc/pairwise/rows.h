// The reductions over a block of R rows: all columns in order, so that a row's result depends on nothing else.
#pragma once
#include <cstring>

#include "pairwise/pack.h"
#include "team.h"

namespace gwf::GWF_ISA {

// What a thread needs for a block of rows.
template <class T> struct RowScratch {
    T *x, *x_norm, *tile, *value, *slope, *total, *partial, *reference;
    static int64_t size(const Problem<T>& p) { return R<T> * (p.D + 3 * TJ + p.D + 2 * p.C + 8) + 16 * 16; }
    RowScratch(Arena<T>& arena, const Problem<T>& p)
        : x(arena.take(p.D * R<T>)),
          x_norm(arena.take(R<T>)),
          tile(arena.take(TJ * R<T>)),
          value(arena.take(TJ * R<T>)),
          slope(arena.take(TJ * R<T>)),
          total(arena.take((p.D + p.C + 2) * R<T>)),
          partial(arena.take((p.C + 1) * R<T>)),
          reference(arena.take(R<T>)) {}
};

// ---- one pass without tiles: a single term in one to three dimensions ----------------------------------------

inline constexpr int64_t chunk = 384;  // columns summed before adding to the total, so that rounding stays at 1e-7

// total: [value][R] if Value, then [D][R] of sum_j b_j phi' (x - y_j) if Slope
template <int D, class P, bool Value, bool Slope, bool Plain, class T>
void direct_rows(const T* x, const T* y, int64_t M, const typename TileKernel<T>::Part& part, T* total) {
    vec<T> xv[NB<T>][D];
    for (int d = 0; d < D; d++) GWF_LANES xv[k][d] = load(x + d * R<T> + k * lanes<T>);
    const vec<T> p = splat(part.parameter), ratio = splat(part.ratio);
    for (int64_t j0 = 0; j0 < M; j0 += chunk) {
        vec<T> s[NB<T>] = {}, g[NB<T>][D] = {};
        for (int64_t j = j0, end = std::min(M, j0 + chunk); j < end; j++, y += D + 1) {
            vec<T> e[NB<T>][D], t[NB<T>], f[NB<T>][2];
#pragma GCC unroll 3
            for (int d = 0; d < D; d++) GWF_LANES {
                    e[k][d] = xv[k][d] - y[d];
                    t[k] = d == 0 ? e[k][d] * e[k][d] : t[k] + e[k][d] * e[k][d];
                }
            GWF_LANES P::template jet<Slope ? 1 : 0>(Plain ? t[k] : vec<T>(t[k] * ratio), p, NoShift{}, f[k]);
            if (Value) GWF_LANES s[k] += f[k][0] * y[D];
            if (Slope) GWF_LANES {
                    const vec<T> w = f[k][1] * y[D];
#pragma GCC unroll 3
                    for (int d = 0; d < D; d++) g[k][d] += w * e[k][d];
                }
        }
        GWF_LANES {
            T* at = total + k * lanes<T>;
            if (Value) store(at, load(at) + s[k]);
            if (Slope)
                for (int d = 0; d < D; d++) {
                    T* slot = at + (d + Value) * R<T>;
                    store(slot, load(slot) + (Plain ? g[k][d] : vec<T>(g[k][d] * ratio)));
                }
        }
    }
}

// In pieces between which the thread breathes: a call within the pass would cost it its registers.
template <int D, class P, bool Value, bool Slope, bool Plain, class T>
void direct_pieces(const Problem<T>& p, RowScratch<T>& s, const typename TileKernel<T>::Part& part) {
    constexpr int64_t piece = 32 * chunk;
    for (int64_t j0 = 0; j0 < p.M; j0 += piece) {
        breathe(double(piece) * R<T> * (D + 4));
        direct_rows<D, P, Value, Slope, Plain>(s.x, p.y_rows + j0 * (D + 1), std::min(piece, p.M - j0), part, s.total);
    }
}

template <class P, bool Value, bool Slope, bool Plain, class T> bool direct(const Problem<T>& p, RowScratch<T>& s) {
    const auto& part = p.kernel->parts[0];
    switch (p.D) {
        case 1:
            direct_pieces<1, P, Value, Slope, Plain>(p, s, part);
            return true;
        case 2:
            direct_pieces<2, P, Value, Slope, Plain>(p, s, part);
            return true;
        case 3:
            direct_pieces<3, P, Value, Slope, Plain>(p, s, part);
            return true;
    }
    return false;
}

template <bool Value, bool Slope, class T> bool direct(const Problem<T>& p, RowScratch<T>& s) {
    if (p.D > 3 || p.exclude_self || !p.kernel->single() || (p.C > 1)) return false;
    switch (p.kernel->parts[0].profile) {
#define GWF_CASE(id, P)                                                                    \
    case id:                                                                               \
        if (!P::positive || p.kernel->plain()) return direct<P, Value, Slope, true>(p, s); \
        return direct<P, Value, Slope, !P::positive>(p, s);  // those without a scale have no other form
        GWF_FOR_EACH_PROFILE(GWF_CASE)
#undef GWF_CASE
    }
    return false;
}

// ---- sums and gradients --------------------------------------------------------------------------------------

template <class T> void scale_columns(T* f, const T* weight, int n) {
    for (int j = 0; j < n; j++, f += R<T>) GWF_LANES store(f + k * lanes<T>, load(f + k * lanes<T>) * weight[j]);
}

// total [C][R]
template <class T> void sum_rows(const Problem<T>& p, int64_t i0, RowScratch<T>& s) {
    if (direct<true, false>(p, s)) return;
    const bool fused = p.kernel->single() && p.C == 1 && !p.exclude_self;
    for (int64_t j0 = 0; j0 < p.M; j0 += TJ) {
        const int n = int(std::min<int64_t>(TJ, p.M - j0));
        breathe(p.tile_work());
        distances(p, s.x, s.x_norm, j0, n, s.tile);
        if (fused) {
            const auto& part = p.kernel->parts[0];
            switch (part.profile) {
#define GWF_CASE(id, P)                                                         \
    case id:                                                                    \
        if (!P::positive || p.kernel->plain())                                  \
            sum_part<P, true>(part, s.tile, p.weight + j0, n, s.total);         \
        else                                                                    \
            sum_part<P, !P::positive>(part, s.tile, p.weight + j0, n, s.total); \
        break;
                GWF_FOR_EACH_PROFILE(GWF_CASE)
#undef GWF_CASE
            }
            continue;
        }
        evaluate<0, Shift::none>(*p.kernel, s.tile, Shifts<T>{}, n, &s.value);
        drop_self(p, i0, j0, n, s.value);
        if (p.C == 1)
            sum_channels(s.value, p.weight + j0, 1, 1, n, s.total);
        else
            sum_channels(s.value, p.b + j0 * p.C, p.C, p.C, n, s.total);
    }
}

// total: [value][R] if Value, then [D][R] of sum_j b_j phi' (x - y_j)
template <bool Value, class T> void gradient_rows(const Problem<T>& p, int64_t i0, RowScratch<T>& s) {
    if (direct<Value, true>(p, s)) return;
    T* slopes = s.total + Value * R<T>;
    T* slope_sum = slopes + p.D * R<T>;
    T* const f[2] = {s.value, s.slope};
    // A point has no part in its own gradient; of products, the largest term, what is left would be its rounding.
    const bool no_own_slope = p.exclude_self || (p.form != Form::differences && p.x == p.y && p.N == p.M);
    for (int64_t j0 = 0; j0 < p.M; j0 += TJ) {
        const int n = int(std::min<int64_t>(TJ, p.M - j0));
        breathe(p.tile_work());
        distances(p, s.x, s.x_norm, j0, n, s.tile);
        evaluate<1, Shift::none>(*p.kernel, s.tile, Shifts<T>{}, n, f);
        drop_self(p, i0, j0, n, s.value);
        if (no_own_slope) drop_diagonal(i0, j0, n, s.slope);
        if (Value) sum_channels(s.value, p.weight + j0, 1, 1, n, s.total);
        scale_columns(s.slope, p.weight + j0, n);
        const T* y = p.y_rows + j0 * p.stride;
        if (p.form == Form::differences) {
            sum_differences(s.slope, s.x, y, p.stride, p.D, n, slopes);
            continue;
        }
        sum_channels<T>(s.slope, nullptr, 0, 1, n, slope_sum);
        sum_channels(s.slope, y, p.stride, p.D, n, slopes);
    }
    if (p.form != Form::differences)
        for (int64_t d = 0; d < p.D; d++)
            for (int l = 0; l < R<T>; l++) {
                T& value = slopes[d * R<T> + l];
                value = s.x[d * R<T> + l] * slope_sum[l] - value;
            }
}

// ---- log-domain sums -----------------------------------------------------------------------------------------

// partial [1][R] = sum_j 2**(shift_j - reference) k_ij, then, if Mean, [D][R] with y_j as the values. y [n][D + 1] ends
// in the shift.
template <int D, class P, bool Mean, bool Plain, class T>
void direct_log_tile(const T* x, const T* y, const T* reference, int n, const typename TileKernel<T>::Part& part,
                     T* partial) {
    vec<T> xv[NB<T>][D], row[NB<T>], s[NB<T>] = {}, m[NB<T>][D] = {};
    GWF_LANES {
        row[k] = load(reference + k * lanes<T>);
        for (int d = 0; d < D; d++) xv[k][d] = load(x + d * R<T> + k * lanes<T>);
    }
    const vec<T> p = splat(part.parameter), ratio = splat(part.ratio);
    for (int j = 0; j < n; j++, y += D + 1) {
        vec<T> t[NB<T>], f[NB<T>];
#pragma GCC unroll 3
        for (int d = 0; d < D; d++) GWF_LANES {
                const vec<T> e = xv[k][d] - y[d];
                t[k] = d == 0 ? e * e : t[k] + e * e;
            }
        GWF_LANES P::template jet<0>(Plain ? t[k] : vec<T>(t[k] * ratio), p, vec<T>(y[D] - row[k]), &f[k]);
        GWF_LANES s[k] += f[k];
        if (Mean) GWF_LANES {
#pragma GCC unroll 3
                for (int d = 0; d < D; d++) m[k][d] += f[k] * y[d];
            }
    }
    GWF_LANES {
        store(partial + k * lanes<T>, s[k]);
        if (Mean)
            for (int d = 0; d < D; d++) store(partial + (d + 1) * R<T> + k * lanes<T>, m[k][d]);
    }
}

template <class P, bool Mean, bool Plain, class T>
void direct_log_tile(const Problem<T>& p, int64_t j0, int n, RowScratch<T>& s) {
    const auto& part = p.kernel->parts[0];
    const T* y = p.y_rows + j0 * p.stride;
    switch (p.D) {
        case 1:
            return direct_log_tile<1, P, Mean, Plain>(s.x, y, s.reference, n, part, s.partial);
        case 2:
            return direct_log_tile<2, P, Mean, Plain>(s.x, y, s.reference, n, part, s.partial);
        case 3:
            return direct_log_tile<3, P, Mean, Plain>(s.x, y, s.reference, n, part, s.partial);
    }
}

template <bool Mean, class T> void direct_log_tile(const Problem<T>& p, int64_t j0, int n, RowScratch<T>& s) {
    switch (p.kernel->parts[0].profile) {
#define GWF_CASE(id, P)                                                        \
    case id:                                                                   \
        return p.kernel->plain() ? direct_log_tile<P, Mean, true>(p, j0, n, s) \
                                 : direct_log_tile<P, Mean, false>(p, j0, n, s);
        GWF_FOR_EACH_POSITIVE_PROFILE(GWF_CASE)
#undef GWF_CASE
    }
}

// Through a tile, for any dimension and kernel: returns the values, over the distances where they are no longer needed.
template <class T> T* log_values(const Problem<T>& p, int64_t i0, int64_t j0, int n, RowScratch<T>& s) {
    T* value = p.kernel->single() ? s.tile : s.value;
    const Shifts<T> shifts{s.reference, p.shift + j0};
    if (p.far)
        evaluate<0, Shift::far>(*p.kernel, s.tile, shifts, n, &value);
    else
        evaluate<0, Shift::near>(*p.kernel, s.tile, shifts, n, &value);
    drop_self(p, i0, j0, n, value);
    std::fill(s.partial, s.partial + R<T>, T(0));
    sum_channels<T>(value, nullptr, 0, 1, n, s.partial);
    return value;
}

// Values are relative to 2**reference, the largest seen when it was last set; it is set anew only when a sum threatens
// to overflow, which costs a check a tile instead of a maximum a pair.
template <class T>
void move_reference(const Problem<T>& p, int64_t i0, int64_t j0, int n, int64_t C, RowScratch<T>& s) {
    T old[R<T>];
    std::copy(s.reference, s.reference + R<T>, old);
    bound_exponents(*p.kernel, s.tile, p.shift + j0, n, p.exclude_self ? i0 - j0 : 2 * TJ, s.reference);
    for (int l = 0; l < R<T>; l++) {
        const T factor = std::exp2(old[l] - s.reference[l]);
        for (int64_t c = 0; c < 1 + C; c++) s.total[c * R<T> + l] *= factor;
    }
}

// total [1][R] becomes the log-sum-exp, and [C][R] after it the averages.
template <class T> void log_rows(const Problem<T>& p, int64_t i0, bool average, RowScratch<T>& s) {
    const T overflow = sizeof(T) == 4 ? T(0x1p100) : T(0x1p900);
    const int64_t C = average ? p.C : 0;
    const bool direct = p.D <= 3 && p.kernel->single() && !p.exclude_self && !p.b && !p.far;
    std::fill(s.reference, s.reference + R<T>, masked<T>);
    for (int64_t j0 = 0; j0 < p.M; j0 += TJ) {
        const int n = int(std::min<int64_t>(TJ, p.M - j0));
        breathe(p.tile_work());
        const T* value = nullptr;
        for (bool again = j0 == 0 || p.far;; again = true) {
            if (!direct || again) distances(p, s.x, s.x_norm, j0, n, s.tile);
            if (again) move_reference(p, i0, j0, n, C, s);
            if (!direct)
                value = log_values(p, i0, j0, n, s);
            else if (average)
                direct_log_tile<true>(p, j0, n, s);
            else
                direct_log_tile<false>(p, j0, n, s);
            bool safe = true;
            for (int l = 0; l < R<T>; l++) safe &= !(s.partial[l] >= overflow);  // NaN stays NaN however often
            if (safe || again) break;
        }
        for (int64_t at = 0; at < (direct ? 1 + C : 1) * R<T>; at++) s.total[at] += s.partial[at];
        if (!direct && average) {
            const T* v = p.b ? p.b + j0 * p.C : p.y_rows + j0 * p.stride;
            sum_channels(value, v, p.b ? p.C : p.stride, p.C, n, s.total + R<T>);
        }
    }
    T *sum = s.total, *channels = s.total + R<T>;
    for (int l = 0; l < R<T>; l++) {
        // nothing but weights of 0, and no NaN
        const bool empty = s.reference[l] <= masked<T> / 2 && !std::isnan(sum[l]);
        for (int64_t c = 0; c < C; c++) {
            T& value = channels[c * R<T> + l];
            value = empty ? std::numeric_limits<T>::quiet_NaN() : value / sum[l];
            if (!p.b) value = T(double(value) / p.kernel->scale + double(p.centre[c]));
        }
        const T log2_sum = s.reference[l] + T(std::log2(sum[l] * p.kernel->coefficient));
        sum[l] = empty || sum[l] == 0 ? -std::numeric_limits<T>::infinity() : T(log2_sum / log2_e);
    }
}

// ---- a block of rows -----------------------------------------------------------------------------------------

// out [N][width] = factor * total [width][R]
template <class T>
void scatter_rows(const Problem<T>& p, int64_t i0, const T* total, int64_t width, double factor, T* out) {
    const int64_t count = std::min<int64_t>(R<T>, p.N - i0);
    for (int64_t l = 0; l < count; l++)
        for (int64_t d = 0; d < width; d++) out[(i0 + l) * width + d] = total[d * R<T> + l] * T(factor);
}

template <class T> void reduce_rows(const Problem<T>& p, int64_t i0, RowScratch<T>& s) {
    gather_positions(p, i0, s.x, s.x_norm);
    std::fill(s.total, s.total + (p.D + p.C + 2) * R<T>, T(0));
    const double value = p.kernel->coefficient, slope = 2 * value * p.kernel->scale;
    switch (p.reduction) {
        case Reduction::sum:
            sum_rows(p, i0, s);
            return scatter_rows(p, i0, s.total, p.C, value, p.out);
        case Reduction::gradient:
            gradient_rows<false>(p, i0, s);
            return scatter_rows(p, i0, s.total, p.D, slope, p.out);
        case Reduction::sum_gradient:
            gradient_rows<true>(p, i0, s);
            scatter_rows(p, i0, s.total, 1, value, p.out);
            return scatter_rows(p, i0, s.total + R<T>, p.D, slope, p.out2);
        case Reduction::logsumexp:
            log_rows(p, i0, false, s);
            return scatter_rows(p, i0, s.total, 1, 1.0, p.out);
        case Reduction::average:
            log_rows(p, i0, true, s);
            scatter_rows(p, i0, s.total + R<T>, p.C, 1.0, p.out);
            return scatter_rows(p, i0, s.total, 1, 1.0, p.out2);
        case Reduction::jet:
            return;
    }
}

}  // namespace gwf::GWF_ISA
