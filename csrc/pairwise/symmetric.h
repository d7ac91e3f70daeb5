// Sums of a set with itself: each pair is computed once and serves both of its points.
//
// Workers are virtual: their number depends on the problem only, each owns a fixed set of column blocks and a private
// copy of the output, and the copies are added in order. Any number of threads gives the same bits.
#pragma once
#include "pairwise/rows.h"

namespace gwf::GWF_ISA {

inline constexpr int64_t private_output_bytes = 48 << 20;

template <class T> struct SymmetricPlan {
    int64_t blocks, padded, width;  // column blocks, rows padded to whole blocks, outputs a row
    int workers;
    T *positions, *norms, *weight;  // [D][padded], [padded], [padded] with 0 beyond the end
    T* outputs;                     // [workers][width][padded]

    static bool serves(const Problem<T>& p) {
        const bool slope = p.reduction == Reduction::gradient || p.reduction == Reduction::sum_gradient;
        return p.x == p.y && p.N == p.M && p.N >= 4 * TJ && p.C == 1 && !p.column_shift &&
               ((slope && p.D <= 3) || p.reduction == Reduction::sum);
    }
    explicit SymmetricPlan(const Problem<T>& p) {
        blocks = (p.N + TJ - 1) / TJ;
        padded = blocks * TJ;
        width = (p.reduction != Reduction::gradient) + (p.reduction != Reduction::sum) * p.D;
        const int64_t affordable = private_output_bytes / int64_t(sizeof(T)) / (padded * width);
        workers = int(std::clamp<int64_t>(std::min(affordable, blocks / 4), 1, 16));
    }
    int64_t arena_size(const Problem<T>& p) const { return padded * (p.D + 2 + workers * width) + 8 * 16; }
    void take_arena(Arena<T>& arena, const Problem<T>& p) {
        positions = arena.take(padded * p.D);
        norms = arena.take(padded);
        weight = arena.take(padded);
        outputs = arena.take(padded * width * workers);
        for (int64_t i = 0; i < padded; i++) {  // beyond the end, where weights are 0, points that are finite
            const bool real = i < p.N;
            for (int64_t d = 0; d < p.D; d++) positions[d * padded + i] = real ? p.y_rows[i * p.stride + d] : T(0);
            norms[i] = real && p.panels ? p.y_norm[i] : T(0);
            weight[i] = real ? p.weight[i] : T(0);
        }
    }
    // The blocks of a worker go to and fro (0 1 2 2 1 0 0 1 2 ...), since a block costs in proportion to its place.
    int owner(int64_t block) const {
        const int64_t turn = block / workers, place = block % workers;
        return int(turn % 2 ? workers - 1 - place : place);
    }
};

// Both sides of one tile: rows get sum_j w_j f_ij, columns sum_i w_i f_ij (still in lanes).
template <bool TwoSided, class T>
void add_values(const T* f, const T* row_weight, const T* weight, int n, T* rows, T* columns) {
    vec<T> s[NB<T>] = {}, own[NB<T>];
    GWF_LANES own[k] = load(row_weight + k * lanes<T>);
    for (int j = 0; j < n; j++, f += R<T>, columns += lanes<T>) {
        vec<T> c = TwoSided ? load(columns) : vec<T>{};
        GWF_LANES {
            const vec<T> value = load(f + k * lanes<T>);
            s[k] += value * weight[j];
            c += value * own[k];
        }
        if (TwoSided) store(columns, c);
    }
    GWF_LANES store(rows + k * lanes<T>, load(rows + k * lanes<T>) + s[k]);
}

// The same for slopes: rows get sum_j w_j f_ij (x_i - x_j), columns the opposite; rows [D][stride], columns
// [n][D][lanes]
template <bool TwoSided, int D, class T>
void add_slopes(const T* f, const T* x, const T* y, int y_stride, const T* row_weight, const T* weight, int n, T* rows,
                int64_t row_stride, T* columns) {
    vec<T> s[D][NB<T>] = {}, own[NB<T>], xv[D][NB<T>];
    GWF_LANES {
        own[k] = load(row_weight + k * lanes<T>);
        for (int d = 0; d < D; d++) xv[d][k] = load(x + d * R<T> + k * lanes<T>);
    }
    for (int j = 0; j < n; j++, f += R<T>, y += y_stride, columns += D * lanes<T>) {
        vec<T> value[NB<T>];
        GWF_LANES value[k] = load(f + k * lanes<T>);
#pragma GCC unroll 3
        for (int d = 0; d < D; d++) {
            vec<T> c = TwoSided ? load(columns + d * lanes<T>) : vec<T>{};
            GWF_LANES {
                const vec<T> force = value[k] * (xv[d][k] - y[d]);
                s[d][k] += force * weight[j];
                c -= force * own[k];
            }
            if (TwoSided) store(columns + d * lanes<T>, c);
        }
    }
    for (int d = 0; d < D; d++) GWF_LANES {
            T* at = rows + d * row_stride + k * lanes<T>;
            store(at, load(at) + s[d][k]);
        }
}

template <class T> struct SymmetricScratch {
    T *x, *tile, *value, *slope, *value_columns, *slope_columns;
    static int64_t size(const Problem<T>& p) { return R<T> * (p.D + 3 * TJ) + TJ * lanes<T> * 4 + 8 * 16; }
    SymmetricScratch(Arena<T>& arena, const Problem<T>& p)
        : x(arena.take(p.D * R<T>)),
          tile(arena.take(TJ * R<T>)),
          value(arena.take(TJ * R<T>)),
          slope(arena.take(TJ * R<T>)),
          value_columns(arena.take(TJ * lanes<T>)),
          slope_columns(arena.take(3 * TJ * lanes<T>)) {}
};

template <bool TwoSided, class T>
void symmetric_tile(const Problem<T>& p, const SymmetricPlan<T>& plan, int64_t i0, int64_t j0, int n, T* out,
                    SymmetricScratch<T>& s) {
    breathe(p.tile_work());
    for (int64_t d = 0; d < p.D; d++) std::copy_n(plan.positions + d * plan.padded + i0, R<T>, s.x + d * R<T>);
    distances(p, s.x, plan.norms + i0, j0, n, s.tile);
    const T *row_weight = plan.weight + i0, *weight = plan.weight + j0, *y = p.y_rows + j0 * p.stride;
    if (p.reduction == Reduction::sum) {
        evaluate<0, Shift::none>(*p.kernel, s.tile, Shifts<T>{}, n, &s.value);
    } else {
        T* const f[2] = {s.value, s.slope};
        evaluate<1, Shift::none>(*p.kernel, s.tile, Shifts<T>{}, n, f);
        if (!TwoSided) drop_self(p, i0, j0, n, s.slope);
    }
    if (!TwoSided) drop_self(p, i0, j0, n, s.value);
    const bool value = p.reduction != Reduction::gradient;
    if (value) add_values<TwoSided>(s.value, row_weight, weight, n, out + i0, s.value_columns);
    if (p.reduction == Reduction::sum) return;
    T* slopes = out + value * plan.padded + i0;
    switch (p.D) {
#define GWF_CASE(D)                                                                                    \
    case D:                                                                                            \
        add_slopes<TwoSided, D>(s.slope, s.x, y, p.stride, row_weight, weight, n, slopes, plan.padded, \
                                s.slope_columns);                                                      \
        break;
        GWF_CASE(1) GWF_CASE(2) GWF_CASE(3)
#undef GWF_CASE
    }
}

// All blocks of one worker, into its private output.
template <class T>
void symmetric_worker(const Problem<T>& p, const SymmetricPlan<T>& plan, int worker, SymmetricScratch<T>& s) {
    T* out = plan.outputs + int64_t(worker) * plan.width * plan.padded;
    std::fill_n(out, plan.width * plan.padded, T(0));
    const bool value = p.reduction != Reduction::gradient;
    for (int64_t block = 0; block < plan.blocks; block++) {
        if (plan.owner(block) != worker) continue;
        const int64_t j0 = block * TJ;
        const int n = int(std::min<int64_t>(TJ, p.M - j0));
        std::fill_n(s.value_columns, TJ * lanes<T>, T(0));
        std::fill_n(s.slope_columns, 3 * TJ * lanes<T>, T(0));
        for (int64_t i0 = 0; i0 < j0; i0 += R<T>) symmetric_tile<true>(p, plan, i0, j0, n, out, s);
        for (int64_t i0 = j0; i0 < j0 + TJ; i0 += R<T>) symmetric_tile<false>(p, plan, i0, j0, n, out, s);
        for (int j = 0; j < n; j++) {
            if (value) out[j0 + j] += horizontal_sum<T>(load(s.value_columns + j * lanes<T>));
            if (p.reduction != Reduction::sum)
                for (int64_t d = 0; d < p.D; d++)
                    out[(value + d) * plan.padded + j0 + j] +=
                        horizontal_sum<T>(load(s.slope_columns + (j * p.D + d) * lanes<T>));
        }
    }
}

// Adds the private outputs of rows i0 .. i1 - 1 in the order of the workers.
template <class T> void symmetric_finish(const Problem<T>& p, const SymmetricPlan<T>& plan, int64_t i0, int64_t i1) {
    const bool value = p.reduction != Reduction::gradient;
    const double factor = p.kernel->coefficient;
    T* slopes = p.reduction == Reduction::gradient ? p.out : p.out2;
    for (int64_t i = i0; i < i1; i++)
        for (int64_t c = 0; c < plan.width; c++) {
            T sum = 0;
            for (int w = 0; w < plan.workers; w++) sum += plan.outputs[(w * plan.width + c) * plan.padded + i];
            if (value && c == 0)
                p.out[i] = sum * T(factor);
            else
                slopes[i * p.D + c - value] = sum * T(2 * factor * p.kernel->scale);
        }
}

}  // namespace gwf::GWF_ISA
