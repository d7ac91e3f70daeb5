// From the caller's arrays to what the tiles read: columns centred, scaled and packed once a call, rows a block at a
// time.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "memory.h"
#include "pairwise/range.h"

namespace gwf::GWF_ISA {

inline constexpr double log2_e = 1.4426950408889634;
inline constexpr int panel_dim = 5;  // from this dimension on, distances come from panels

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
    Form form = Form::differences;
    bool far;         // see Choice
    bool reads_rows;  // columns are read point by point, not only through panels

    // for breathe; counts what a tile of rows and columns takes
    double tile_work() const { return double(TJ) * R<T> * double(D + 4) * double(kernel->parts.size()); }
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
    T coordinate(T value, int64_t d) const { return (value - centre[d]) * T(kernel->scale); }
};

// The scale of a problem's coordinates; false where it needs a wider type. Looks at points and log-weights once.
template <class T> bool choose_kernel(Problem<T>& p, const KernelForms<T>& forms) {
    const double x = largest_offset(p.x, p.N, p.D, p.centre);
    const double reach = p.x == p.y && p.N == p.M ? x : std::max(x, double(largest_offset(p.y, p.M, p.D, p.centre)));
    double shift = p.in_log_domain() || p.column_shift || p.row_shift ? 0 : -1;
    auto see = [&](const T* shifts, int64_t n) {
        T largest = 0;
        for (int64_t i = 0; shifts && i < n; i++) {
            const T size = std::abs(shifts[i]);
            largest = size > largest && size <= std::numeric_limits<T>::max() ? size : largest;
        }
        if (shifts) shift += double(largest) * log2_e;
    };
    see(p.row_shift, p.N);
    see(p.column_shift, p.M);
    const bool slopes = p.jet() || p.reduction == Reduction::gradient || p.reduction == Reduction::sum_gradient;
    const Choice<T> choice = choose_kernel(forms, p.D, reach, shift, slopes, p.jet());
    p.kernel = choice.kernel;
    p.far = choice.far;
    return choice.kernel;
}

// Subtracting a centre keeps float32 accurate far from the origin. It must not cost the last bits of x near it, which
// decide the distance of close points: no centre where the cloud holds the origin, else one of some bits less, so that
// x - c is exact. From a fixed sample of the finite columns.
template <class T> void find_centre(const T* points, int64_t n, int64_t D, T* centre) {
    const int64_t step = std::max<int64_t>(1, n / 256);
    for (int64_t d = 0; d < D; d++) {
        double sum = 0, squares = 0, count = 0;
        for (int64_t j = 0; j < n; j += step) {
            const double value = points[j * D + d];
            if (std::isfinite(value)) sum += value, squares += value * value, count++;
        }
        const double mean = count ? sum / count : 0;
        const double variance = count ? std::max(0.0, squares / count - mean * mean) : 0;
        int exponent;
        const double fraction = std::ldexp(std::frexp(mean, &exponent), std::numeric_limits<T>::digits - 8);
        const T short_mean = T(std::ldexp(std::round(fraction), exponent - std::numeric_limits<T>::digits + 8));
        centre[d] = mean * mean <= 16 * variance || !std::isfinite(short_mean) ? T(0) : short_mean;
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

// Products lose about 3e-7 |x'|^2 in float (absolute, in t): good where that is a few 1e-6 at most, or where nothing in
// the kernel sets a scale, so that the error is relative to the cloud. A kink at 0 asks for differences where points
// are near, and forbids products for derivatives, which are large there.
template <class T> Form distance_form(const Problem<T>& p, T largest_norm) {
    const bool derivative = p.reduction == Reduction::gradient || p.reduction == Reduction::sum_gradient;
    const TileKernel<T>& kernel = *p.kernel;
    if (p.D < 8 || (derivative && !kernel.smooth)) return Form::differences;
    if (!(largest_norm < std::numeric_limits<T>::max() / 8)) return Form::differences;  // infinity less infinity
    const bool accurate = kernel.scale_free ? kernel.single()                           // terms of a sum may cancel
                                            : largest_norm * kernel.sharpest <= T(11.5);
    return !accurate ? Form::differences : kernel.smooth ? Form::products : Form::mended;
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
    if (p.form == Form::differences) return;
    chunked_sums_of_squares<R<T>>(x, p.D, x_norm);
}

// t [n][R] for columns j0 .. j0 + n - 1 (up to the next multiple of PJ where there are panels)
template <class T> void distances(const Problem<T>& p, const T* x, const T* x_norm, int64_t j0, int n, T* t) {
    if (p.panels) {
        const T *panels = p.panels + j0 * p.D, *norms = p.y_norm + j0;
        switch (p.form) {
            case Form::differences:
                return distances_wide<Form::differences>(x, x_norm, panels, norms, p.D, n, t);
            case Form::products:
                return distances_wide<Form::products>(x, x_norm, panels, norms, p.D, n, t);
            case Form::mended:
                return distances_wide<Form::mended>(x, x_norm, panels, norms, p.D, n, t);
        }
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

// Drops the pairs of row i with column i from a tile whose first row is i0 and first column j0.
template <class T> void drop_diagonal(int64_t i0, int64_t j0, int n, T* f) {
    for (int l = 0; l < R<T>; l++)
        if (const int64_t j = i0 + l - j0; j >= 0 && j < n) f[j * R<T> + l] = 0;
}
template <class T> void drop_self(const Problem<T>& p, int64_t i0, int64_t j0, int n, T* f) {
    if (p.exclude_self) drop_diagonal(i0, j0, n, f);
}

}  // namespace gwf::GWF_ISA
