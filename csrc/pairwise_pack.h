// From the caller's arrays to what the tiles read: columns centred, scaled and packed once a call, rows a block at a
// time.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <utility>

#include "pairwise_tile.h"

namespace gwf::GWF_ISA {

inline constexpr double log2_e = 1.4426950408889634;
inline constexpr int panel_dim = 5;  // from this dimension on, distances come from panels

// Page-aligned blocks. A thread keeps the last few small ones: fresh pages would cost more than a small call computes.
class BlockCache {
  public:
    struct Block {
        void* memory = nullptr;
        size_t bytes = 0;
    };
    ~BlockCache() {
        for (Block& block : blocks_) std::free(block.memory);
    }
    Block acquire(size_t bytes) {
        for (Block& block : blocks_)
            if (block.bytes >= bytes) return std::exchange(block, Block{});
        bytes = (bytes + 4095) / 4096 * 4096;
        void* memory = std::aligned_alloc(4096, bytes);
        if (!memory) throw std::bad_alloc();
        return {memory, bytes};
    }
    void release(Block block) {
        if (block.bytes <= largest_kept)
            for (Block& kept : blocks_)
                if (kept.bytes < block.bytes) std::swap(kept, block);
        std::free(block.memory);
    }
    static BlockCache& of_this_thread() {
        thread_local BlockCache cache;
        return cache;
    }

  private:
    static constexpr size_t largest_kept = 1 << 20;
    Block blocks_[3];
};

// Cache-line-aligned memory, handed out in pieces.
template <class T> class Arena {
  public:
    explicit Arena(int64_t count)
        : block_(BlockCache::of_this_thread().acquire(size_t(std::max<int64_t>(count, 1)) * sizeof(T))),
          next_(static_cast<T*>(block_.memory)) {}
    ~Arena() { BlockCache::of_this_thread().release(block_); }
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    static int64_t rounded(int64_t count) { return (count + 15) / 16 * 16; }
    T* take(int64_t count) {
        T* piece = next_;
        next_ += rounded(count);
        return piece;
    }

  private:
    BlockCache::Block block_;
    T* next_;
};

template <class T> TileKernel<T> tile_kernel(const std::vector<Term>& terms) {
    struct Traits {
        double unit;
        bool decaying, smooth;
    };
#define GWF_TRAITS(id, P) {P::unit, P::positive, P::smooth},
    static constexpr Traits traits[] = {GWF_FOR_EACH_PROFILE(GWF_TRAITS)};
#undef GWF_TRAITS
    TileKernel<T> kernel;
    auto squared_scale = [](const Term& term) { return traits[term.profile].unit / (term.bandwidth * term.bandwidth); };
    kernel.scale = std::sqrt(squared_scale(terms[0]));
    kernel.decaying = kernel.smooth = kernel.scale_free = true;
    for (const Term& term : terms) {
        const double ratio = squared_scale(term) / squared_scale(terms[0]);
        typename TileKernel<T>::Part part{term.profile, T(ratio), T(term.parameter), {}};
        for (int o = 0; o < 4; o++) part.coefficient[o] = T(term.coefficient * std::pow(ratio, o));
        kernel.parts.push_back(part);
        kernel.sharpest = std::max(kernel.sharpest, T(ratio));
        kernel.decaying &= traits[term.profile].decaying;
        kernel.smooth &= traits[term.profile].smooth;
        kernel.scale_free &= !traits[term.profile].decaying;
    }
    kernel.coefficient = kernel.single() ? terms[0].coefficient : 1.0;
    return kernel;
}

// One element of the batch: the caller's arrays, and the packed columns.
template <class T> struct Problem {
    const TileKernel<T>* kernel;
    Reduction reduction;
    int64_t N, M, D, C;  // rows, columns, dimension, channels
    const T *x, *y, *a, *b, *row_shift, *column_shift;
    bool exclude_self;
    int order;
    Tangent<T> tangents[2];
    T *out, *out2;
    // packed
    int stride;  // of y_rows
    T* centre;   // [D]
    T* y_rows;   // [M][stride]; with stride = D + 1 the last entry is the weight or, for log-domain sums, the shift
    T* panels;   // [ceil(M / PJ)][D][PJ]
    T* y_norm;   // [M]
    T* weight;   // [M] of a single channel
    T* shift;    // [M] base 2
    bool dot = false;
    bool reads_rows;  // columns are read point by point, not only through panels

    bool jet() const { return reduction == Reduction::jet; }
    bool in_log_domain() const { return reduction == Reduction::logsumexp || reduction == Reduction::average; }
    bool panelled() const { return D >= panel_dim && !jet(); }
    int64_t padded() const { return (M + PJ - 1) / PJ * PJ; }
    int64_t arena_size() const {
        const int64_t rows = M * (D + 1), wide = panelled() ? padded() * (D + 1) : 0;
        return rows + wide + 3 * padded() + D + 8 * 16;
    }
    void take_arena(Arena<T>& arena) {
        stride = int(jet() || panelled() ? D : D + 1);
        centre = arena.take(D);
        y_rows = arena.take(M * stride);
        panels = panelled() ? arena.take(padded() * D) : nullptr;
        y_norm = arena.take(padded());
        weight = arena.take(padded());
        shift = arena.take(padded());
    }
    T coordinate(T value, int64_t d) const {
        const T scaled = (value - centre[d]) * T(kernel->scale);
        if (!kernel->decaying) return scaled;
        // so that |x - y|^2 stays finite and a far point gives 0, not NaN; NaN itself passes
        const T limit = std::sqrt(std::numeric_limits<T>::max() / (8 * T(D)));
        return scaled > limit ? limit : scaled < -limit ? -limit : scaled;
    }
};

// Subtracting a centre keeps float32 accurate far from the origin. It must not cost the last bits of x near it, which
// decide the distance of close points: no centre where the cloud holds the origin, else one of few bits, so that x - c
// is exact. From a fixed sample of the finite columns.
template <class T> void find_centre(Problem<T>& p) {
    const int64_t step = std::max<int64_t>(1, p.M / 256);
    for (int64_t d = 0; d < p.D; d++) {
        double sum = 0, squares = 0, count = 0;
        for (int64_t j = 0; j < p.M; j += step) {
            const double value = p.y[j * p.D + d];
            if (std::isfinite(value)) sum += value, squares += value * value, count++;
        }
        const double mean = count ? sum / count : 0;
        const double variance = count ? std::max(0.0, squares / count - mean * mean) : 0;
        int exponent;
        const double fraction = std::frexp(mean, &exponent);
        p.centre[d] = mean * mean <= 16 * variance ? T(0) : T(std::ldexp(std::round(fraction * 256) / 256, exponent));
    }
}

// A column's coordinates to its place among the rows and in its panel; what is not read later is not written.
template <class T> void pack_coordinates(Problem<T>& p, int64_t j) {
    T* const panel = p.panels ? p.panels + j / PJ * PJ * p.D + j % PJ : nullptr;
    const bool rows = !p.panels || p.reads_rows;
    for (int64_t d = 0; d < p.D; d++) {
        const T value = j < p.M ? p.coordinate(p.y[j * p.D + d], d) : T(0);
        if (rows && j < p.M) p.y_rows[j * p.stride + d] = value;
        if (panel) panel[d * PJ] = value;
    }
}

// Packs columns j0 .. j1 - 1; j0 is a multiple of PJ. Returns the largest squared norm.
template <class T> T pack_columns(Problem<T>& p, int64_t j0, int64_t j1) {
    T largest = 0;
    const int64_t end = j1 == p.M ? p.padded() : j1;
    for (int64_t j = j0; j < end; j++) {
        const bool real = j < p.M;
        pack_coordinates(p, j);
        p.weight[j] = !real ? T(0) : p.b && p.C == 1 ? p.b[j] : T(1);
        const T shift = p.column_shift && real ? p.column_shift[j] * T(log2_e) : T(0);
        p.shift[j] = shift < masked<T> ? masked<T> : shift;
        if (real && p.stride > p.D) p.y_rows[j * p.stride + p.D] = p.in_log_domain() ? p.shift[j] : p.weight[j];
    }
    if (!p.panels) return largest;
    for (int64_t j = j0; j < end; j += PJ) {
        chunked_sums_of_squares<PJ>(p.panels + j * p.D, p.D, p.y_norm + j);
        for (int q = 0; q < PJ; q++) largest = std::max(largest, p.y_norm[j + q]);
    }
    return largest;
}

template <class T> T largest_row_norm(const Problem<T>& p, int64_t i0, int64_t i1) {
    T largest = 0;
    for (int64_t i = i0; i < i1; i++) {
        T norm = 0;
#pragma omp simd reduction(+ : norm)
        for (int64_t d = 0; d < p.D; d++) {
            const T value = p.coordinate(p.x[i * p.D + d], d);
            norm += value * value;
        }
        largest = std::max(largest, norm);
    }
    return largest;
}

// The dot form of the distance loses about 3e-7 |x'|^2 in float (absolute, in t): good where that is a few 1e-6 at
// most, or where nothing in the kernel sets a scale, so that the error is relative to the cloud. A kink at 0 forbids it
// for derivatives, which are large there.
template <class T> bool dot_form_is_accurate(const Problem<T>& p, T largest_norm) {
    const bool derivative = p.reduction == Reduction::gradient || p.reduction == Reduction::sum_gradient;
    if (p.D < 8 || (derivative && !p.kernel->smooth)) return false;
    if (p.kernel->scale_free) return p.kernel->single();  // terms of a sum may cancel
    return largest_norm * p.kernel->sharpest <= T(11.5);
}

// The rows of a block, transposed to [channels][R]; lanes beyond the end repeat the last row.
template <class T, class F> void gather_rows(int64_t i0, int64_t N, int64_t width, F value, T* tile) {
    for (int l = 0; l < R<T>; l++) {
        const int64_t i = std::min(i0 + l, N - 1);
        for (int64_t d = 0; d < width; d++) tile[d * R<T> + l] = value(i, d);
    }
}

template <class T> void gather_positions(const Problem<T>& p, int64_t i0, T* x, T* x_norm) {
    gather_rows<T>(i0, p.N, p.D, [&](int64_t i, int64_t d) { return p.coordinate(p.x[i * p.D + d], d); }, x);
    if (!p.dot) return;
    chunked_sums_of_squares<R<T>>(x, p.D, x_norm);
}

// t [n][R] for columns j0 .. j0 + n - 1 (up to the next multiple of PJ where there are panels)
template <class T> void distances(const Problem<T>& p, const T* x, const T* x_norm, int64_t j0, int n, T* t) {
    if (p.panels) {
        const T *panels = p.panels + j0 * p.D, *norms = p.y_norm + j0;
        return p.dot ? distances_wide<true>(x, x_norm, panels, norms, p.D, n, t)
                     : distances_wide<false>(x, x_norm, panels, norms, p.D, n, t);
    }
    const T* y = p.y_rows + j0 * p.stride;
    switch (p.D) {
        case 1:
            return distances_small<1>(x, y, p.stride, n, t);
        case 2:
            return distances_small<2>(x, y, p.stride, n, t);
        case 3:
            return distances_small<3>(x, y, p.stride, n, t);
        case 4:
            return distances_small<4>(x, y, p.stride, n, t);
        default:
            return difference_products(x, x, y, y, p.D, n, t);
    }
}

// Drops the pairs of a point with itself from a tile whose first row is i0 and first column j0.
template <class T> void drop_self(const Problem<T>& p, int64_t i0, int64_t j0, int n, T* f) {
    if (!p.exclude_self) return;
    for (int l = 0; l < R<T>; l++)
        if (const int64_t j = i0 + l - j0; j >= 0 && j < n) f[j * R<T> + l] = 0;
}

}  // namespace gwf::GWF_ISA
