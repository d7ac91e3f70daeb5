// One problem of any size on all threads: distances are computed anew in each of three passes over the pairs (sums of
// rows, sums of columns, forces), a tile at a time and once for all temperatures. Nothing of size N x M is stored.
// Lanes are the points whose sums are formed, so that each is formed by one thread in a fixed order.
#pragma once
#include "drift/small.h"

namespace gwf::GWF_ISA {

// Points that are streamed past the lanes.
template <class T> struct DriftSide {
    const T* points;  // [n][D]
    int64_t n;
    T* panels;           // [ceil(n / PJ)][D][PJ], null in few dimensions, where points are read as they are
    int64_t own_offset;  // point i + own_offset is lane i itself; far beyond the end for positives

    static int64_t panel_size(int64_t n, int64_t D) { return D < panel_dim ? 0 : (n + PJ - 1) / PJ * PJ * D; }
    void pack(int64_t D) {
        for (int64_t j = 0; panels && j < (n + PJ - 1) / PJ * PJ; j++)
            for (int64_t d = 0; d < D; d++)
                panels[j / PJ * PJ * D + d * PJ + j % PJ] = points[std::min(j, n - 1) * D + d];
    }
};

// Base-2 logarithms of sums of 2**-(scale (r - nearest)), apart from the distance to the nearest: see normalise().
template <class T> struct LogSums {
    std::vector<T> logs, nearest;  // [K][n], [1 or K][n]
    void resize(int64_t rates, int64_t n, int64_t kinds) {
        logs.resize(size_t(rates * n));
        nearest.resize(size_t(kinds * n));
    }
};

template <class T> struct DriftStream {
    int64_t D, rates;
    T floor, own;
    bool has_own;
    std::vector<T> scales;       // [K]  log2(e) / temperature
    DriftSide<T> x, targets[2];  // targets: negatives, positives
    const T* weights[2];         // of the targets, [n] or, a row_stride apart, [N][n]; null = ones
    int64_t row_stride = 0;
    std::vector<T> shifts[2];  // [K][n]  -T log v of the targets, see shift_targets(); empty = none
    LogSums<T> rows, columns[2];

    bool shifted() const { return !shifts[0].empty() || !shifts[1].empty(); }
    const T* shifts_of(int sign, int64_t rate) const { return shifts[sign].data() + rate * targets[sign].n; }
    // What multiplies the distance of lane l to target j, and is 0 where the target does not count.
    T weight(int sign, int64_t i, int64_t j) const {
        if (shifted() && shifts[sign][size_t(j)] >= T(absent<T>)) return 0;
        return weights[sign] ? weights[sign][(row_stride ? std::min(i, x.n - 1) * row_stride : 0) + j] : T(1);
    }
};

// Tiles of a block of lanes against one side, in order: use(j0, n, distances [n][R]).
template <class T, class F>
void for_distance_tiles(const DriftStream<T>& p, const T* lanes_at, const DriftSide<T>& side, int64_t i0, bool shifted,
                        T* tile, F use) {
    const vec<T> least = splat(p.floor);
    for (int64_t j0 = 0; j0 < side.n; j0 += TJ) {
        const int n = int(std::min<int64_t>(TJ, side.n - j0));
        breathe(double(TJ) * R<T> * double(p.D + 8 * (1 + p.rates)));
        const T* y = side.points + j0 * p.D;
        const int stride = int(p.D);
        switch (p.D) {
            case 1:
                distances_small<1>(lanes_at, y, stride, n, tile);
                break;
            case 2:
                distances_small<2>(lanes_at, y, stride, n, tile);
                break;
            case 3:
                distances_small<3>(lanes_at, y, stride, n, tile);
                break;
            case 4:
                distances_small<4>(lanes_at, y, stride, n, tile);
                break;
            default:
                distances_wide<Form::differences, T>(lanes_at, nullptr, side.panels + j0 * p.D, nullptr, p.D, n, tile);
        }
        for (T* at = tile; at < tile + n * R<T>; at += lanes<T>) store(at, square_root(larger(least, load(at))));
        if (shifted && p.has_own)
            for (int l = 0; l < R<T>; l++)
                if (const int64_t j = i0 + l + side.own_offset - j0; j >= 0 && j < n) tile[j * R<T> + l] += p.own;
        use(j0, n, tile);
    }
}

// Lanes of a block, and what a thread needs for them.
template <class T> struct DriftScratch {
    T *points, *tile, *affinity, *weights, *nearest, *sums, *vectors;
    static int64_t size(int64_t D, int64_t rates) {
        return R<T> * (D + 3 * (TJ + PJ) + rates + 2 * rates * (D + 1)) + 16 * 16;
    }
    DriftScratch(Arena<T>& arena, int64_t D, int64_t rates)
        : points(arena.take(R<T> * D)),
          tile(arena.take(R<T> * (TJ + PJ))),
          affinity(arena.take(R<T> * (TJ + PJ))),
          weights(arena.take(R<T> * (TJ + PJ))),        // [TJ][R]
          nearest(arena.take(rates * R<T>)),            // [1 or K][R]
          sums(arena.take(2 * rates * R<T>)),           // [2][K][R]
          vectors(arena.take(2 * rates * D * R<T>)) {}  // [2][K][D][R]
};

template <class T> void gather_lanes(const DriftSide<T>& side, int64_t i0, int64_t D, T* to) {
    gather_rows<T>(i0, side.n, D, [&](int64_t i, int64_t d) { return side.points[i * D + d]; }, to);
}

// The weights of a tile of targets, [n][R].
template <class T> void gather_weights(const DriftStream<T>& p, int sign, int64_t i0, int64_t j0, int n, T* to) {
    for (int j = 0; j < n; j++)
        for (int l = 0; l < R<T>; l++) to[j * R<T> + l] = p.weight(sign, i0 + l, j0 + j);
}

// Sums over j of 2**(-scale r_ij) of the lanes i0 .. over all of the other sides, which are Shifted at each rate.
template <bool Shifted, class T>
void log_sums(const DriftStream<T>& p, const DriftSide<T>& side, int64_t i0, const DriftSide<T>* others, int count,
              DriftScratch<T>& s, LogSums<T>& sums) {
    const int64_t kinds = Shifted ? p.rates : 1;
    gather_lanes(side, i0, p.D, s.points);
    std::fill(s.nearest, s.nearest + kinds * R<T>, T(absent<T>));
    std::fill(s.sums, s.sums + p.rates * R<T>, T(0));
    for (int other = 0; other < count; other++)
        for_distance_tiles(p, s.points, others[other], i0, true, s.tile, [&](int64_t j0, int n, const T* tile) {
            for (int64_t kind = 0; kind < kinds; kind++) {
                const T* shift = Shifted ? p.shifts_of(other, kind) + j0 : nullptr;
                auto distance = [&](int j, int k) {
                    const vec<T> r = load(tile + j * R<T> + k * lanes<T>);
                    return Shifted ? vec<T>(r + shift[j]) : r;
                };
                T* const nearest = s.nearest + kind * R<T>;
                vec<T> old[NB<T>], near[NB<T>];
                GWF_LANES old[k] = near[k] = load(nearest + k * lanes<T>);
                for (int j = 0; j < n; j++) GWF_LANES near[k] = smaller(near[k], distance(j, k));
                GWF_LANES store(nearest + k * lanes<T>, near[k]);
                for (int64_t rate = kind; rate < (Shifted ? kind + 1 : p.rates); rate++) {
                    const vec<T> scale = splat(p.scales[rate]);
                    vec<T> sum[NB<T>] = {};
                    for (int j = 0; j < n; j++) GWF_LANES sum[k] += decay(vec<T>((distance(j, k) - near[k]) * scale));
                    GWF_LANES {
                        T* at = s.sums + rate * R<T> + k * lanes<T>;
                        store(at, load(at) * decay(vec<T>((old[k] - near[k]) * scale)) + sum[k]);
                    }
                }
            }
        });
    for (int64_t rate = 0; rate < p.rates; rate++)
        for (int64_t l = 0; l < std::min<int64_t>(R<T>, side.n - i0); l++)
            sums.logs[size_t(rate * side.n + i0 + l)] = std::log2(s.sums[rate * R<T> + l]);
    for (int64_t kind = 0; kind < kinds; kind++)
        for (int64_t l = 0; l < std::min<int64_t>(R<T>, side.n - i0); l++)
            sums.nearest[size_t(kind * side.n + i0 + l)] = s.nearest[kind * R<T> + l];
}

// sums and vectors += the affinities to the targets of one sign, and their products with these
template <bool Shifted, class T>
void add_affinities(const DriftStream<T>& p, int64_t i0, int sign, T least, const T* half_rows, const T* half_nearest,
                    DriftScratch<T>& s) {
    const DriftSide<T>& side = p.targets[sign];
    const vec<T> bound = splat(least);
    for_distance_tiles(p, s.points, side, i0, true, s.tile, [&](int64_t j0, int n, const T* tile) {
        if (Shifted || p.row_stride) gather_weights(p, sign, i0, j0, n, s.weights);
        for (int64_t rate = 0; rate < p.rates; rate++) {
            const T* columns = p.columns[sign].logs.data() + rate * side.n + j0;
            const T *near = p.columns[sign].nearest.data() + j0, *rows = half_rows + rate * R<T>;
            const vec<T> scale = splat(p.scales[rate]);
            const T* shifts = Shifted ? p.shifts_of(sign, rate) + j0 : nullptr;
            vec<T> row[NB<T>], row_nearest[NB<T>];
            GWF_LANES {
                row[k] = load(rows + k * lanes<T>);
                row_nearest[k] = load(half_nearest + (Shifted ? rate : 0) * R<T> + k * lanes<T>);
            }
            for (int j = 0; j < n; j++) {
                const T shift = Shifted ? shifts[j] : T(0);
                const vec<T> column = splat(T(0.5) * columns[j]), nearest = splat(T(0.5) * (near[j] + shift));
                const vec<T> weight = splat(p.weights[sign] && !p.row_stride ? p.weights[sign][j0 + j] : T(1));
                GWF_LANES {
                    const int64_t at = j * R<T> + k * lanes<T>;
                    const vec<T> distance = Shifted ? load(tile + at) + shift : load(tile + at);
                    const vec<T> away = (distance - nearest) - row_nearest[k];
                    const vec<T> exponent = away * scale + (row[k] + column);
                    const vec<T> a = larger(bound, decay(larger(vec<T>{}, exponent)));
                    const vec<T> w = Shifted || p.row_stride ? load(s.weights + at) : weight;
                    store(s.affinity + at, vec<T>(a * w));
                }
            }
            const int64_t slot = sign * p.rates + rate;
            sum_channels<T>(s.affinity, nullptr, 0, 1, n, s.sums + slot * R<T>);
            sum_channels<T>(s.affinity, side.points + j0 * p.D, p.D, p.D, n, s.vectors + slot * p.D * R<T>);
        }
    });
}

template <class T>
void stream_forces(const DriftStream<T>& p, int64_t i0, T least, DriftScratch<T>& s, T* out, int64_t out_stride) {
    gather_lanes(p.x, i0, p.D, s.points);
    std::fill(s.sums, s.sums + 2 * p.rates * R<T>, T(0));
    std::fill(s.vectors, s.vectors + 2 * p.rates * p.D * R<T>, T(0));
    const int64_t kinds = p.shifted() ? p.rates : 1;
    std::vector<T> half(size_t((p.rates + kinds) * R<T>));
    T* const half_nearest = half.data() + p.rates * R<T>;
    for (int64_t l = 0; l < R<T>; l++) {
        const int64_t i = std::min(i0 + l, p.x.n - 1);
        for (int64_t rate = 0; rate < p.rates; rate++)
            half[size_t(rate * R<T> + l)] = T(0.5) * p.rows.logs[size_t(rate * p.x.n + i)];
        for (int64_t kind = 0; kind < kinds; kind++)
            half_nearest[kind * R<T> + l] = T(0.5) * p.rows.nearest[size_t(kind * p.x.n + i)];
    }
    for (int sign = 0; sign < 2; sign++)
        if (p.shifted())
            add_affinities<true>(p, i0, sign, least, half.data(), half_nearest, s);
        else
            add_affinities<false>(p, i0, sign, least, half.data(), half_nearest, s);
    for (int64_t rate = 0; rate < p.rates; rate++)
        for (int64_t l = 0; l < std::min<int64_t>(R<T>, p.x.n - i0); l++) {
            const T minus = s.sums[rate * R<T> + l], plus = s.sums[(p.rates + rate) * R<T> + l];
            for (int64_t d = 0; d < p.D; d++) {
                const T repulsion = s.vectors[(rate * p.D + d) * R<T> + l];
                const T attraction = s.vectors[((p.rates + rate) * p.D + d) * R<T> + l];
                out[rate * out_stride + (i0 + l) * p.D + d] = minus * attraction - plus * repulsion;
            }
        }
}

// sum_j w_j r_ij over the lanes i0 .. that exist
template <class T> double total_distance(const DriftStream<T>& p, int64_t i0, DriftScratch<T>& s) {
    gather_lanes(p.x, i0, p.D, s.points);
    double total = 0;
    for (int sign = 0; sign < 2; sign++)
        for_distance_tiles(p, s.points, p.targets[sign], i0, false, s.tile, [&](int64_t j0, int n, const T* tile) {
            vec<T> sum[NB<T>] = {};
            if (p.row_stride) gather_weights(p, sign, i0, j0, n, s.weights);
            for (int j = 0; j < n; j++) {
                const vec<T> weight = splat(p.weights[sign] && !p.row_stride ? p.weights[sign][j0 + j] : T(1));
                GWF_LANES {
                    const int64_t at = j * R<T> + k * lanes<T>;
                    sum[k] += (p.row_stride ? load(s.weights + at) : weight) * load(tile + at);
                }
            }
            for (int64_t l = 0; l < std::min<int64_t>(R<T>, p.x.n - i0); l++)
                total += double(sum[l / lanes<T>][l % lanes<T>]);
        });
    return total;
}

template <class T>
double stream_drift(const DriftCall<T>& call, const DriftSizes& size, int64_t b, T* out, int64_t out_stride) {
    const int64_t D = call.dim, N = size.rows, counts[2] = {size.split, size.columns - size.split};
    const T *x = call.x + b * call.rows * D, *y = call.y + b * call.columns * D;
    const T* weights = call.weights ? call.weights + b * (call.by_row ? call.rows : 1) * call.columns : nullptr;
    const T* logs = call.log_weights ? call.log_weights + b * call.columns : nullptr;
    DriftStream<T> p{.D = D,
                     .rates = out ? call.rates : 0,
                     .floor = T(call.floor),
                     .own = call.own ? call.own[b] : T(0),
                     .has_own = call.own != nullptr};
    Arena<T> arena(DriftSide<T>::panel_size(N, D) + 16 * 16 + DriftSide<T>::panel_size(counts[0], D) +
                   DriftSide<T>::panel_size(counts[1], D));
    constexpr int64_t nowhere = int64_t(1) << 60;
    auto side = [&](const T* points, int64_t n, int64_t own_offset) {
        const int64_t panels = DriftSide<T>::panel_size(n, D);
        DriftSide<T> made{points, n, panels ? arena.take(panels) : nullptr, own_offset};
        made.pack(D);
        return made;
    };
    p.x = side(x, N, 0);
    p.targets[0] = side(y, counts[0], 0);
    p.targets[1] = side(y + counts[0] * D, counts[1], nowhere);
    if (call.by_row) p.row_stride = call.columns;
    for (int sign = 0; sign < 2; sign++) {
        const int64_t first = sign ? counts[0] : 0;
        p.weights[sign] = weights ? weights + first : nullptr;
        p.columns[sign].resize(p.rates, counts[sign], 1);
        for (int64_t k = 0; logs && k < p.rates; k++)
            for (int64_t j = 0; j < counts[sign]; j++) {
                const double shift = -double(call.temperatures[k * call.batch + b]) * double(logs[first + j]);
                p.shifts[sign].push_back(T(std::min(absent<T>, shift)));
            }
    }
    for (int64_t k = 0; k < p.rates; k++) p.scales.push_back(T(log2_e / double(call.temperatures[k * call.batch + b])));
    p.rows.resize(p.rates, N, p.shifted() ? p.rates : 1);
    const T least = T(std::sqrt(call.clip));
    const int64_t row_blocks = (N + R<T> - 1) / R<T>;
    std::vector<double> totals(size_t(row_blocks), 0.0);
    const DriftSide<T>* const targets = p.targets;
    const int64_t column_blocks[2] = {(targets[0].n + R<T> - 1) / R<T>, (targets[1].n + R<T> - 1) / R<T>};
    Team::form(available_threads(), [&](Team& team, int) {
        const FlushDenormals flush;
        Arena<T> memory(DriftScratch<T>::size(D, std::max<int64_t>(p.rates, 1)));
        DriftScratch<T> s(memory, D, std::max<int64_t>(p.rates, 1));
        if (call.total)
            team.loop(row_blocks, 1,
                      [&](int64_t block) { totals[size_t(block)] = total_distance(p, block * R<T>, s); });
        if (!out) return;
        team.loop(row_blocks + column_blocks[0] + column_blocks[1], 1, [&](int64_t block) {
            if (block < row_blocks)
                return p.shifted() ? log_sums<true>(p, p.x, block * R<T>, targets, 2, s, p.rows)
                                   : log_sums<false>(p, p.x, block * R<T>, targets, 2, s, p.rows);
            block -= row_blocks;
            const int sign = block >= column_blocks[0];
            DriftSide<T> rows = p.x;
            rows.own_offset = -targets[sign].own_offset;
            const int64_t j0 = (block - sign * column_blocks[0]) * R<T>;
            log_sums<false>(p, targets[sign], j0, &rows, 1, s, p.columns[sign]);
        });
        team.loop(row_blocks, 1, [&](int64_t block) { stream_forces(p, block * R<T>, least, s, out, out_stride); });
    });
    double total = 0;
    for (const double part : totals) total += part;
    return total;
}

}  // namespace gwf::GWF_ISA
