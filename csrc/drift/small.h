// One small problem at a time and thread: its distances are computed once and stay in cache for all temperatures.
// Lanes are targets; the tile of distances of a block of R targets is [row][R].
#pragma once
#include <limits>

#include "drift/drift.h"
#include "pairwise/pack.h"
#include "team.h"

namespace gwf::GWF_ISA {

// The distance of a lane that is no target: it must decay at any temperature, up to 1e30.
template <class T> inline constexpr double absent = sizeof(T) == 4 ? 1e36 : 1e300;

// 2**-x, x >= 0. Bounded: the exponential's remainder, contracted with the product that x is, grows with x.
template <class V> GWF_INLINE V decay(V x) {
    using T = scalar_t<V>;
    return exp2_any<true>(smaller(splat(sizeof(T) == 4 ? T(1e3) : T(1e4)), x));
}

template <class T> struct DriftProblem {
    int64_t N, M, split, D;
    int64_t rows = (N + PJ - 1) / PJ * PJ, blocks = (M + R<T> - 1) / R<T>;
    int64_t width = (D + lanes<T> - 1) / lanes<T> * lanes<T>;  // of a packed target
    const T* logs = nullptr;                                   // [M]  of the kernel's weights, null = zeros
    const T* row_weights = nullptr;  // [N][stride] of the affinities, null = they are in negative and positive
    int64_t stride = 0;
    T *panels, *points, *tile, *distance, *affinity, *nearest, *column, *negative, *positive, *row, *attraction,
        *repulsion, *shift;

    int64_t arena_size() const {
        return rows * D + blocks * R<T> * width + R<T> * D + (blocks + 1) * rows * R<T> + 5 * blocks * R<T> +
               rows * (2 * R<T> + 2 + 2 * width) + 16 * 16;
    }
    void take_arena(Arena<T>& arena) {
        panels = arena.take(rows * D);
        points = arena.take(blocks * R<T> * width);
        tile = arena.take(R<T> * D);
        distance = arena.take(blocks * rows * R<T>);
        affinity = arena.take(rows * R<T>);
        nearest = arena.take(blocks * R<T>);
        column = arena.take(blocks * R<T>);
        negative = arena.take(blocks * R<T>);
        positive = arena.take(blocks * R<T>);
        row = arena.take(2 * rows);
        attraction = arena.take(rows * (width + R<T>));
        repulsion = arena.take(rows * (width + R<T>));
        shift = arena.take(blocks * R<T>);
    }
    T* sums(T* of) const { return of + rows * width; }  // [rows][R] behind the vectors
};

template <class T> void pack_drift(DriftProblem<T>& p, const T* x, const T* y, const T* weights) {
    for (int64_t i = 0; i < p.rows; i++) {
        const T* from = x + std::min(i, p.N - 1) * p.D;
        T* to = p.panels + i / PJ * PJ * p.D + i % PJ;
        for (int64_t d = 0; d < p.D; d++) to[d * PJ] = from[d];
    }
    for (int64_t j = 0; j < p.blocks * R<T>; j++) {
        const bool real = j < p.M;
        T* to = p.points + j * p.width;
        const int64_t kept = real ? p.D : 0;
        std::copy_n(y + j * p.D, kept, to);
        std::fill(to + kept, to + p.width, T(0));
        const bool counts = real && !(p.logs && p.logs[j] == -std::numeric_limits<T>::infinity());
        const T weight = !counts ? T(0) : weights ? weights[j] : T(1);
        p.negative[j] = j < p.split ? weight : T(0);
        p.positive[j] = j < p.split ? T(0) : weight;
    }
}

// Distances, and the nearest of each row and column. Returns sum_ij w_j r_ij.
template <class T> double measure(DriftProblem<T>& p, const T* y, const T* own, double floor) {
    double total = 0;
    std::fill(p.row, p.row + p.rows, T(absent<T>));
    for (int64_t b = 0; b < p.blocks; b++) {
        gather_rows<T>(b * R<T>, p.M, p.D, [&](int64_t j, int64_t d) { return y[j * p.D + d]; }, p.tile);
        T* r = p.distance + b * p.rows * R<T>;
        distances_wide<Form::differences, T>(p.tile, nullptr, p.panels, nullptr, p.D, int(p.rows), r);
        vec<T> sum[NB<T>] = {};
        for (int64_t i = 0; i < p.N; i++) GWF_LANES {
                T* at = r + i * R<T> + k * lanes<T>;
                const vec<T> v = square_root(larger(splat(T(floor)), load(at)));
                sum[k] += v;
                store(at, v);
            }
        for (int64_t i = 0; p.row_weights && i < p.N; i++)
            for (int64_t l = 0; l < std::min<int64_t>(R<T>, p.M - b * R<T>); l++)
                total += double(r[i * R<T> + l]) * double(p.row_weights[i * p.stride + b * R<T> + l]);
        for (int l = 0; l < R<T>; l++) {
            const int64_t j = b * R<T> + l;
            if (!p.row_weights)
                total += double(sum[l / lanes<T>][l % lanes<T>]) * double(p.negative[j] + p.positive[j]);
            if (own && j < p.N) r[j * R<T> + l] += *own;
            if (j >= p.M)
                for (int64_t i = 0; i < p.N; i++) r[i * R<T> + l] = T(absent<T>);
        }
        GWF_LANES {
            vec<T> least = splat(T(absent<T>));
            for (int64_t i = 0; i < p.N; i++) least = smaller(least, load(r + i * R<T> + k * lanes<T>));
            store(p.nearest + b * R<T> + k * lanes<T>, least);
        }
        for (int64_t i = 0; i < p.N; i++) {
            vec<T> least = load(r + i * R<T>);
            for (int k = 1; k < NB<T>; k++) least = smaller(least, load(r + i * R<T> + k * lanes<T>));
            for (int l = 0; l < lanes<T>; l++) p.row[i] = std::min(p.row[i], T(least[l]));
        }
    }
    return total;
}

// A weight v of the kernel is a distance -T log v beside r, which changes what is nearest to a row. In the softmax of
// its column it cancels.
template <class T> void shift_targets(DriftProblem<T>& p, double temperature) {
    for (int64_t j = 0; j < p.blocks * R<T>; j++)
        p.shift[j] = j < p.M ? T(std::min(absent<T>, -temperature * double(p.logs[j]))) : T(0);
    std::fill(p.row, p.row + p.rows, T(absent<T>));
    for (int64_t b = 0; b < p.blocks; b++)
        for (int64_t i = 0; i < p.N; i++) {
            vec<T> least = splat(T(absent<T>));
            GWF_LANES {
                const vec<T> r = load(p.distance + (b * p.rows + i) * R<T> + k * lanes<T>);
                least = smaller(least, vec<T>(r + load(p.shift + b * R<T> + k * lanes<T>)));
            }
            for (int l = 0; l < lanes<T>; l++) p.row[i] = std::min(p.row[i], T(least[l]));
        }
}

// Base-2 logarithms of the sums of 2**-(scale (r - nearest)): of columns into column, of rows into row + rows. Without
// the nearest: where exponents are large, a half of each would not add up to the exponent of the pair itself.
template <bool Shifted, class T> void normalise(DriftProblem<T>& p, T scale) {
    T* partial = p.sums(p.attraction);
    std::fill(partial, partial + p.rows * lanes<T>, T(0));
    const vec<T> s = splat(scale);
    for (int64_t b = 0; b < p.blocks; b++) {
        const T* r = p.distance + b * p.rows * R<T>;
        vec<T> nearest[NB<T>], sum[NB<T>] = {};
        GWF_LANES nearest[k] = load(p.nearest + b * R<T> + k * lanes<T>);
        for (int64_t i = 0; i < p.N; i++) {
            vec<T> across = load(partial + i * lanes<T>);
            GWF_LANES {
                const vec<T> v = load(r + i * R<T> + k * lanes<T>);
                sum[k] += decay(vec<T>((v - nearest[k]) * s));
                const vec<T> away = Shifted ? v + load(p.shift + b * R<T> + k * lanes<T>) : v;
                across += decay(vec<T>((away - p.row[i]) * s));
            }
            store(partial + i * lanes<T>, across);
        }
        GWF_LANES store(p.column + b * R<T> + k * lanes<T>, log2_of(sum[k]));
    }
    for (int64_t i = 0; i < p.N; i++) p.row[p.rows + i] = std::log2(horizontal_sum<T>(load(partial + i * lanes<T>)));
}

// out [I][width] += sum_j a[i][j] y[j] for I rows and V vectors of coordinates
template <int I, int V, class T> void accumulate(const T* a, const T* y, int64_t width, int n, T* out) {
    vec<T> s[I][V];
#pragma GCC unroll 8
    for (int i = 0; i < I; i++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) s[i][v] = load(out + i * width + v * lanes<T>);
    for (int j = 0; j < n; j++, y += width) {
        vec<T> yv[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) yv[v] = load(y + v * lanes<T>);
#pragma GCC unroll 8
        for (int i = 0; i < I; i++) {
            const vec<T> av = splat(a[i * R<T> + j]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) s[i][v] += av * yv[v];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < I; i++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(out + i * width + v * lanes<T>, s[i][v]);
}

template <class T> void accumulate(const DriftProblem<T>& p, int64_t j0, int64_t j1, const T* a, T* out) {
    constexpr int I = vector_bytes == 64 ? 6 : 4, V = vector_bytes == 64 ? 4 : 2;
    if (j1 <= j0) return;
    const int n = int(j1 - j0);
    a += j0 % R<T>;
    for (int64_t d = 0; d < p.width;) {
        const bool wide = p.width - d >= V * lanes<T>;
        const T* y = p.points + j0 * p.width + d;
        for (int64_t i = 0; i < p.N;) {
            T* at = out + i * p.width + d;
            const T* ai = a + i * R<T>;
            const bool tall = p.N - i >= I;
            if (wide && tall)
                accumulate<I, V>(ai, y, p.width, n, at);
            else if (wide)
                accumulate<1, V>(ai, y, p.width, n, at);
            else if (tall)
                accumulate<I, 1>(ai, y, p.width, n, at);
            else
                accumulate<1, 1>(ai, y, p.width, n, at);
            i += tall ? I : 1;
        }
        d += wide ? V * lanes<T> : lanes<T>;
    }
}

// Weights of the affinities of row i and a block of targets.
template <class T> void load_row_weights(const DriftProblem<T>& p, int64_t i, int64_t j0, T* to) {
    const int64_t n = std::min<int64_t>(R<T>, p.M - j0);
    std::copy_n(p.row_weights + i * p.stride + j0, n, to);
    std::fill(to + n, to + R<T>, T(0));
}

template <bool Shifted, class T> void force(DriftProblem<T>& p, T scale, double clip, T* out) {
    std::fill(p.attraction, p.attraction + p.rows * (p.width + lanes<T>), T(0));
    std::fill(p.repulsion, p.repulsion + p.rows * (p.width + lanes<T>), T(0));
    T *attracted = p.sums(p.attraction), *repelled = p.sums(p.repulsion);
    const vec<T> s = splat(scale), least = splat(T(std::sqrt(clip)));
    for (int64_t b = 0; b < p.blocks; b++) {
        const T* r = p.distance + b * p.rows * R<T>;
        const int64_t j0 = b * R<T>, j1 = std::min(p.M, j0 + R<T>), border = std::clamp(p.split, j0, j1);
        vec<T> half[NB<T>], near[NB<T>], negative[NB<T>], positive[NB<T>], shift[NB<T>] = {};
        alignas(64) T row_weights[R<T>];
        GWF_LANES {
            if (Shifted) shift[k] = load(p.shift + j0 + k * lanes<T>);
            half[k] = T(0.5) * load(p.column + j0 + k * lanes<T>);
            near[k] = T(0.5) * (load(p.nearest + j0 + k * lanes<T>) + shift[k]);
            negative[k] = load(p.negative + j0 + k * lanes<T>);
            positive[k] = load(p.positive + j0 + k * lanes<T>);
        }
        for (int64_t i = 0; i < p.N; i++) {
            const T half_row = T(0.5) * p.row[p.rows + i], nearest = T(0.5) * p.row[i];
            if (p.row_weights) load_row_weights(p, i, j0, row_weights);
            vec<T> plus = load(attracted + i * lanes<T>), minus = load(repelled + i * lanes<T>);
            GWF_LANES {
                const int64_t at = i * R<T> + k * lanes<T>;
                const vec<T> distance = Shifted ? load(r + at) + shift[k] : load(r + at);
                const vec<T> away = (distance - near[k]) - nearest;
                vec<T> a = larger(least, decay(larger(vec<T>{}, vec<T>(away * s + (half[k] + half_row)))));
                if (p.row_weights) a *= load(row_weights + k * lanes<T>);
                const vec<T> n = a * negative[k], q = a * positive[k];
                minus += n;
                plus += q;
                store(p.affinity + at, vec<T>(n + q));
            }
            store(attracted + i * lanes<T>, plus);
            store(repelled + i * lanes<T>, minus);
        }
        accumulate(p, j0, border, p.affinity, p.repulsion);
        accumulate(p, border, j1, p.affinity, p.attraction);
    }
    for (int64_t i = 0; i < p.N; i++) {
        const T plus = horizontal_sum<T>(load(attracted + i * lanes<T>));
        const T minus = horizontal_sum<T>(load(repelled + i * lanes<T>));
        for (int64_t d = 0; d < p.D; d++)
            out[i * p.D + d] = minus * p.attraction[i * p.width + d] - plus * p.repulsion[i * p.width + d];
    }
}

// One problem on one thread; out [K][N][D] a stride apart for the temperatures.
template <class T>
double small_drift(const DriftCall<T>& call, const DriftSizes& size, int64_t b, T* out, int64_t out_stride) {
    const FlushDenormals flush;
    DriftProblem<T> p{size.rows, size.columns, size.split, call.dim};
    Arena<T> arena(p.arena_size());
    p.take_arena(arena);
    const T* y = call.y + b * call.columns * call.dim;
    if (call.log_weights) p.logs = call.log_weights + b * call.columns;
    if (call.weights && call.by_row) p.row_weights = call.weights + b * call.rows * call.columns;
    p.stride = call.columns;
    const T* weights = call.weights && !call.by_row ? call.weights + b * call.columns : nullptr;
    pack_drift(p, call.x + b * call.rows * call.dim, y, weights);
    const double total = measure(p, y, call.own ? call.own + b : nullptr, call.floor);
    const double work = double(size.rows) * double(size.columns) * double(call.dim + 8);
    breathe(work);
    for (int64_t k = 0; out && k < call.rates; k++) {
        breathe(work);
        const double temperature = call.temperatures[k * call.batch + b];
        const T scale = T(log2_e / temperature);
        if (p.logs) {
            shift_targets(p, temperature);
            normalise<true>(p, scale);
            force<true>(p, scale, call.clip, out + k * out_stride);
        } else {
            normalise<false>(p, scale);
            force<false>(p, scale, call.clip, out + k * out_stride);
        }
    }
    return total;
}

}  // namespace gwf::GWF_ISA
