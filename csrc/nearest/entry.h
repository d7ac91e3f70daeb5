// A block of rows meets all columns in tiles of squared distances, and each row keeps the k least in a heap. A tile is
// compared with the worst that its rows have kept, and looked at no further where nothing is better, as nearly
// everywhere after the first columns.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "memory.h"
#include "nearest/nearest.h"
#include "pairwise/tile.h"
#include "team.h"

namespace gwf::GWF_ISA::nearest {

inline constexpr double serial_below = 3e6;  // as in pairwise/entry.h
inline constexpr int64_t widest_direct = 4;  // dimensions in which columns are read as they lie

// Which lanes are less or NaN: those where a >= b does not hold.
template <class T> GWF_INLINE unsigned not_reaching(vec<T> a, vec<T> b) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    if constexpr (sizeof(T) == 4)
        return _mm512_cmp_ps_mask(a, b, _CMP_NGE_UQ);
    else
        return _mm512_cmp_pd_mask(a, b, _CMP_NGE_UQ);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
        return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NGE_UQ)));
    else
        return unsigned(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_NGE_UQ)));
#else
    unsigned mask = 0;
    for (int l = 0; l < lanes<T>; l++) mask |= unsigned(!(a[l] >= b[l])) << l;
    return mask;
#endif
}

// One element of the batch.
template <class T> struct Search {
    int64_t N, M, D, k;
    const T *x, *y;
    const T* panels;  // [ceil(M / PJ)][D][PJ], null where D is small
    bool exclude_self;
    T* squares;
    int64_t* indices;

    int64_t available() const { return M - exclude_self; }
    static int64_t padded(int64_t M) { return (M + PJ - 1) / PJ * PJ; }
};

struct Neighbour {
    double key;  // the squared distance; -1 stands for NaN, which comes before every number
    int64_t index;
    bool operator<(const Neighbour& other) const {
        return key < other.key || (key == other.key && index < other.index);
    }
};

inline double key_of(double square) { return std::isnan(square) ? -1 : square; }

// The least of a row so far, the worst of them on top.
class Kept {
  public:
    void begin(Neighbour* memory, int64_t capacity) { heap_ = memory, capacity_ = capacity, size_ = 0; }
    bool is_full() const { return size_ == capacity_; }
    double worst() const { return heap_[0].key; }
    void offer(double key, int64_t index) {
        if (is_full()) {
            if (!(key < worst())) return;  // later columns lose where they are equal
            std::pop_heap(heap_, heap_ + size_--);
        }
        heap_[size_++] = {key, index};
        std::push_heap(heap_, heap_ + size_);
    }
    Neighbour* begin() { return heap_; }
    Neighbour* end() { return heap_ + size_; }

  private:
    Neighbour* heap_ = nullptr;
    int64_t capacity_ = 0, size_ = 0;
};

// What a thread needs for a block of rows.
template <class T> struct Scratch {
    Arena<T> arena;
    T *x, *tile, *bound;  // [D][R], [TJ][R], [R]
    std::vector<Neighbour> memory;
    Kept kept[R<T>];

    explicit Scratch(const Search<T>& p)
        : arena(R<T> * (p.D + TJ + 1) + 3 * 16),
          x(arena.take(p.D * R<T>)),
          tile(arena.take(TJ * R<T>)),
          bound(arena.take(R<T>)),
          memory(size_t(R<T> * capacity(p))) {
        for (int l = 0; l < R<T>; l++) kept[l].begin(memory.data() + l * capacity(p), capacity(p));
    }
    static int64_t capacity(const Search<T>& p) { return std::clamp<int64_t>(p.available(), 0, p.k); }
};

// t [n][R] for columns j0 .. j0 + n - 1
template <class T> void distances(const Search<T>& p, const T* x, int64_t j0, int n, T* t) {
    if (p.panels) return distances_wide<Form::differences, T>(x, nullptr, p.panels + j0 * p.D, nullptr, p.D, n, t);
    const T* y = p.y + j0 * p.D;
    switch (p.D) {
        case 1:
            return distances_small<1>(x, y, 1, n, t);
        case 2:
            return distances_small<2>(x, y, 2, n, t);
        case 3:
            return distances_small<3>(x, y, 3, n, t);
        case 4:
            return distances_small<4>(x, y, 4, n, t);
    }
}

// Offers what a column has for the rows of a block.
template <class T> void offer_column(const Search<T>& p, int64_t i0, int64_t j, const T* t, Scratch<T>& s) {
    GWF_LANES {
        unsigned mask = not_reaching<T>(load(t + k * lanes<T>), load(s.bound + k * lanes<T>));
        for (; mask; mask &= mask - 1) {
            const int l = k * lanes<T> + __builtin_ctz(mask);
            if (p.exclude_self && i0 + l == j) continue;
            Kept& kept = s.kept[l];
            kept.offer(key_of(t[l]), j);
            // While there is room everything is welcome: nothing reaches NaN. Where all is NaN only NaN does not.
            if (kept.is_full()) s.bound[l] = T(kept.worst());
        }
    }
}

template <class T> void scan_tile(const Search<T>& p, int64_t i0, int64_t j0, int n, Scratch<T>& s) {
    constexpr int group = 4;
    for (int j = 0; j < n; j += group) {
        const int count = std::min(group, n - j);
        unsigned any = 0;
        vec<T> bound[NB<T>];
        GWF_LANES bound[k] = load(s.bound + k * lanes<T>);
        const T* t = s.tile + j * R<T>;
        if (count == group) {
#pragma GCC unroll 4
            for (int q = 0; q < group; q++)
                GWF_LANES any |= not_reaching<T>(load(t + q * R<T> + k * lanes<T>), bound[k]);
            if (!any) continue;
        }
        for (int q = 0; q < count; q++) offer_column(p, i0, j0 + j + q, t + q * R<T>, s);
    }
}

// |x_i - y_j|^2 of floats, exact to half a unit of float: their differences are exact in double, or nearly.
inline double exact_square(const Search<float>& p, int64_t i, int64_t j) {
    const float *x = p.x + i * p.D, *y = p.y + j * p.D;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < p.D; d++) {
        const double e = double(x[d]) - double(y[d]);
        sum += e * e;
    }
    return sum;
}

// Distances anew in double, and their order. Where squares left float's range, in which distances can't be told apart,
// all columns are looked at once more.
inline void refine(const Search<float>& p, int64_t i, Kept& kept) {
    constexpr double coarse = 1e-30;  // smaller squares have parts below the least normal float
    bool again = false;
    for (Neighbour& each : kept) {
        const double before = each.key, square = exact_square(p, i, each.index);
        each.key = key_of(square);
        again |= (square > 0 && square < coarse) || (std::isinf(before) && !std::isinf(square));
    }
    if (!again) return;
    kept.begin(kept.begin(), kept.end() - kept.begin());
    for (int64_t j = 0; j < p.M; j++) {
        if (j % 4096 == 0) breathe(4096.0 * double(p.D));
        if (!(p.exclude_self && j == i)) kept.offer(key_of(exact_square(p, i, j)), j);
    }
}
inline void refine(const Search<double>&, int64_t, Kept&) {}

template <class T> void write_row(const Search<T>& p, int64_t i, Kept& kept) {
    T* squares = p.squares + i * p.k;
    int64_t* indices = p.indices + i * p.k;
    refine(p, i, kept);
    std::sort(kept.begin(), kept.end());
    for (const Neighbour& each : kept) {
        *squares++ = each.key < 0 ? std::numeric_limits<T>::quiet_NaN() : T(each.key);
        *indices++ = each.index;
    }
    std::fill(squares, p.squares + (i + 1) * p.k, std::numeric_limits<T>::infinity());
    std::fill(indices, p.indices + (i + 1) * p.k, -1);
}

template <class T> void search_rows(const Search<T>& p, int64_t i0, Scratch<T>& s) {
    const int64_t count = std::min<int64_t>(R<T>, p.N - i0), capacity = Scratch<T>::capacity(p);
    for (int l = 0; l < R<T>; l++) {
        const T* row = p.x + (i0 + std::min<int64_t>(l, count - 1)) * p.D;  // lanes beyond the end repeat the last row
        for (int64_t d = 0; d < p.D; d++) s.x[d * R<T> + l] = row[d];
        s.kept[l].begin(s.memory.data() + l * capacity, capacity);
        s.bound[l] = std::numeric_limits<T>::quiet_NaN();
    }
    if (capacity > 0)
        for (int64_t j0 = 0; j0 < p.M; j0 += TJ) {
            const int n = int(std::min<int64_t>(TJ, p.M - j0));
            breathe(double(TJ) * R<T> * double(p.D + 4));
            distances(p, s.x, j0, n, s.tile);
            scan_tile(p, i0, j0, n, s);
        }
    for (int64_t l = 0; l < count; l++) write_row(p, i0 + l, s.kept[l]);
}

template <class T> void pack_panel(const Search<T>& p, int64_t j0, T* panels) {
    T* panel = panels + j0 * p.D;
    for (int64_t d = 0; d < p.D; d++)
        for (int64_t q = 0; q < PJ; q++) panel[d * PJ + q] = j0 + q < p.M ? p.y[(j0 + q) * p.D + d] : T(0);
}

template <class T> void solve(Search<T>& p, int threads) {
    const bool wide = p.D > widest_direct;
    Arena<T> packed(wide ? Search<T>::padded(p.M) * p.D : 0);
    T* panels = wide ? packed.take(Search<T>::padded(p.M) * p.D) : nullptr;
    Team::form(threads, [&](Team& team, int) {
        if (wide)
            team.loop(p.M, 512 * PJ, [&](int64_t j0) {
                breathe(512.0 * PJ * double(p.D));
                for (int64_t j = j0; j < std::min(p.M, j0 + 512 * PJ); j += PJ) pack_panel(p, j, panels);
            });
        team.once([&] { p.panels = panels; });
        Scratch<T> scratch(p);
        team.loop(p.N, R<T>, [&](int64_t i0) { search_rows(p, i0, scratch); });
    });
}

template <class T> Search<T> batch_element(const NearestCall<T>& call, int64_t b) {
    Search<T> p{};
    p.N = call.row_lengths ? call.row_lengths[b] : call.rows;
    p.M = call.column_lengths ? call.column_lengths[b] : call.columns;
    p.D = call.dim;
    p.k = call.count;
    p.x = call.x + b * call.rows * call.dim;
    p.y = call.y + b * call.columns * call.dim;
    p.exclude_self = call.exclude_self;
    p.squares = call.squares + b * call.rows * call.count;
    p.indices = call.indices + b * call.rows * call.count;
    std::fill(p.squares + p.N * p.k, p.squares + call.rows * p.k, T(0));
    std::fill(p.indices + p.N * p.k, p.indices + call.rows * p.k, -1);
    return p;
}

template <class T> void run(const NearestCall<T>& call) {
    const double work = double(call.rows) * double(call.columns) * (double(call.dim) / 4 + 1);
    const int threads = work * double(call.batch) < serial_below ? 1 : available_threads();
    auto solved = [&](int64_t b, int share) {
        Search<T> p = batch_element(call, b);
        if (p.N > 0) solve(p, share);
    };
    if (call.batch > 1 && (threads == 1 || call.batch >= 4 * threads || work < serial_below)) {
        Team::form(threads, [&](Team& team, int) { team.loop(call.batch, 1, [&](int64_t b) { solved(b, 1); }); });
        return;
    }
    for (int64_t b = 0; b < call.batch; b++) solved(b, threads);
}

}  // namespace gwf::GWF_ISA::nearest
