// The Stein kernel on tiles. Its three inner products follow from three squared distances, those of x, of s and of
// w = x + s (scaled to like size), so that the distance tiles of the reductions serve:
//     s_i.s_j = (|s_i|^2 + |s_j|^2 - |s_i - s_j|^2) / 2,  (x_i - x_j).(s_i - s_j) = (|dw|^2 - |dx|^2 - |ds|^2) / 2.
// The value takes each pair once; a row block's sum is a number of its own, added in order.
#pragma once
#include "pairwise/entry.h"
#include "stein/stein.h"

namespace gwf::GWF_ISA {

// Squared norms of W points whose coordinates lie side by side, [D][W]: not off by more than the rounding of the
// result, which is in all pairs of a point, and does not cancel where distances come from differences.
template <int W, class T> void squared_norms(const T* points, int64_t D, T* norms) {
    if constexpr (sizeof(T) == 8) return chunked_sums_of_squares<W>(points, D, norms);
    double total[W] = {};
    for (int64_t d = 0; d < D; d++)
        for (int w = 0; w < W; w++) total[w] += double(points[d * W + w]) * double(points[d * W + w]);
    std::copy(total, total + W, norms);
}

// Points [N][D] with their panels and squared norms.
template <class T> struct SteinPoints {
    T *rows, *panels, *norm;
    static int64_t size(int64_t N, int64_t D) { return 2 * (N + PJ) * D + N + PJ + 3 * 16; }
    SteinPoints(Arena<T>& arena, int64_t N, int64_t D)
        : rows(arena.take((N + PJ) * D)), panels(arena.take((N + PJ) * D)), norm(arena.take(N + PJ)) {}
    void pack(int64_t N, int64_t D) {
        for (int64_t j = 0; j < (N + PJ - 1) / PJ * PJ; j++)
            for (int64_t d = 0; d < D; d++) panels[j / PJ * PJ * D + d * PJ + j % PJ] = j < N ? rows[j * D + d] : T(0);
        for (int64_t j = 0; j < N; j += PJ) squared_norms<PJ>(panels + j * D, D, norm + j);
    }
};

template <class T> struct SteinProblem {
    const TileKernel<T>* kernel;
    int64_t N, D;
    bool diagonal, dot;
    T score_scale;            // s' = score_scale * s
    SteinPoints<T>* sets[3];  // x' = scale * (x - centre), s', x' + s'
};

// Rows of the three sets, tiles of the three distances, of the kernel's derivatives, and sums.
template <class T> struct SteinScratch {
    T *x[3], *x_norm[3], *tile[3], *f[4], *coefficient, *sums;
    static int64_t size(int64_t D) { return R<T> * (3 * D + 3 + 8 * TJ + 4 * D + 2) + 16 * 16; }
    SteinScratch(Arena<T>& arena, int64_t D) {
        for (auto& piece : x) piece = arena.take(D * R<T>);
        for (auto& piece : x_norm) piece = arena.take(R<T>);
        for (auto& piece : tile) piece = arena.take(TJ * R<T>);
        for (auto& piece : f) piece = arena.take(TJ * R<T>);
        coefficient = arena.take(TJ * R<T>);
        sums = arena.take((4 * D + 2) * R<T>);
    }
};

template <class T> void gather_stein_rows(const SteinProblem<T>& p, int64_t i0, SteinScratch<T>& s) {
    for (int set = 0; set < 3; set++) {
        const T* rows = p.sets[set]->rows;
        gather_rows<T>(i0, p.N, p.D, [&](int64_t i, int64_t d) { return rows[i * p.D + d]; }, s.x[set]);
        squared_norms<R<T>>(s.x[set], p.D, s.x_norm[set]);
    }
}

template <int Order, class T> void stein_tiles(const SteinProblem<T>& p, int64_t j0, int n, SteinScratch<T>& s) {
    for (int set = 0; set < 3; set++) {
        const T *panels = p.sets[set]->panels + j0 * p.D, *norms = p.sets[set]->norm + j0;
        if (p.dot)
            distances_wide<Form::products>(s.x[set], s.x_norm[set], panels, norms, p.D, n, s.tile[set]);
        else
            distances_wide<Form::differences>(s.x[set], s.x_norm[set], panels, norms, p.D, n, s.tile[set]);
    }
    evaluate<Order, Shift::none>(*p.kernel, s.tile[0], Shifts<T>{}, n, s.f);
}

// s_i.s_j and (x_i - x_j).(s_i - s_j) at one place of the tiles.
template <class T> struct SteinProducts {
    vec<T> scores, mixed;
    SteinProducts(const SteinProblem<T>& p, const SteinScratch<T>& s, int j, T norm, int k) {
        const int64_t at = int64_t(j) * R<T> + k * lanes<T>;
        const vec<T> ds = load(s.tile[1] + at);
        const T beta = p.score_scale;
        scores = (load(s.x_norm[1] + k * lanes<T>) + norm - ds) * T(0.5 / (double(beta) * beta));
        mixed = (load(s.tile[2] + at) - load(s.tile[0] + at) - ds) * T(0.5 / (double(beta) * p.kernel->scale));
    }
};

// How often the pairs of lane l and column j count in a sum over i <= j.
template <class T> T pair_count(const SteinProblem<T>& p, int64_t i, int64_t j) {
    return i >= p.N || j < i ? T(0) : j > i ? T(2) : p.diagonal ? T(1) : T(0);
}

template <class T> double stein_rows(const SteinProblem<T>& p, int64_t i0, SteinScratch<T>& s) {
    gather_stein_rows(p, i0, s);
    const T scale2 = T(p.kernel->scale * p.kernel->scale);
    double total = 0;
    for (int64_t j0 = i0 / TJ * TJ; j0 < p.N; j0 += TJ) {
        const int n = int(std::min<int64_t>(TJ, p.N - j0));
        breathe(3.0 * TJ * R<T> * double(p.D + 8));
        stein_tiles<2>(p, j0, n, s);
        const bool inside = j0 > i0 + R<T> && i0 + R<T> <= p.N;
        vec<T> sum[NB<T>] = {};
        for (int j = 0; j < n; j++) GWF_LANES {
                const int64_t at = int64_t(j) * R<T> + k * lanes<T>;
                const SteinProducts<T> product(p, s, j, p.sets[1]->norm[j0 + j], k);
                const vec<T> t = load(s.tile[0] + at), f2 = load(s.f[2] + at);
                vec<T> u = load(s.f[0] + at) * product.scores -
                           T(2) * scale2 * (load(s.f[1] + at) * (product.mixed + T(p.D)) + T(2) * t * f2);
                if (!inside)
                    for (int l = 0; l < lanes<T>; l++) {
                        const T count = pair_count(p, i0 + k * lanes<T> + l, j0 + j);
                        u[l] = count == 0 ? T(0) : u[l] * (count * T(0.5));
                    }
                sum[k] += u;
            }
        GWF_LANES for (int l = 0; l < lanes<T>; l++) total += 2.0 * double(sum[k][l]);
    }
    return total * p.kernel->coefficient;
}

// The derivatives of sum_ij U_ij in x_i and s_i, each twice that of row i. A point with itself has d = 0 and
// s_i - s_j = 0, and is left out of all that multiplies them: of products, |s_i|^2 phi' x_i would leave its rounding,
// next to which other pairs may be nothing. Products serve where distances come from products. With
//     c = phi' s_i.s_j - 2 phi'' ((s_i - s_j).d + D + 2) - 4 r^2 phi''',
//     dU/dx_i = 2 c d - 2 phi' (s_i - s_j),  dU/ds_i = phi s_j - 2 phi' d.
template <class T>
void stein_gradient_rows(const SteinProblem<T>& p, int64_t i0, SteinScratch<T>& s, T* x_gradient, T* score_gradient) {
    gather_stein_rows(p, i0, s);
    const int64_t D = p.D, part = D * R<T>;
    const T scale2 = T(p.kernel->scale * p.kernel->scale);
    std::fill(s.sums, s.sums + (4 * D + 2) * R<T>, T(0));
    T *c_x = s.sums, *f1_x = c_x + part, *f1_s = f1_x + part, *f0_s = f1_s + part, *c_one = f0_s + part,
      *f1_one = c_one + R<T>;
    for (int64_t j0 = 0; j0 < p.N; j0 += TJ) {
        const int n = int(std::min<int64_t>(TJ, p.N - j0));
        breathe(3.0 * TJ * R<T> * double(p.D + 8));
        stein_tiles<3>(p, j0, n, s);
        for (int j = 0; j < n; j++) GWF_LANES {
                const int64_t at = int64_t(j) * R<T> + k * lanes<T>;
                const SteinProducts<T> product(p, s, j, p.sets[1]->norm[j0 + j], k);
                const vec<T> f2 = load(s.f[2] + at), t = load(s.tile[0] + at);
                const vec<T> c = load(s.f[1] + at) * product.scores -
                                 scale2 * (T(2) * f2 * (product.mixed + T(D + 2)) + T(4) * t * load(s.f[3] + at));
                store(s.coefficient + at, c);
            }
        if (!p.diagonal) drop_diagonal(i0, j0, n, s.f[0]);
        drop_diagonal(i0, j0, n, s.f[1]);
        drop_diagonal(i0, j0, n, s.coefficient);
        const T *x = p.sets[0]->rows + j0 * D, *score = p.sets[1]->rows + j0 * D;
        sum_channels(s.f[0], score, D, D, n, f0_s);
        if (!p.dot) {
            sum_differences(s.coefficient, s.x[0], x, int(D), D, n, c_x);
            sum_differences(s.f[1], s.x[0], x, int(D), D, n, f1_x);
            sum_differences(s.f[1], s.x[1], score, int(D), D, n, f1_s);
            continue;
        }
        sum_channels(s.coefficient, x, D, D, n, c_x);
        sum_channels(s.f[1], x, D, D, n, f1_x);
        sum_channels(s.f[1], score, D, D, n, f1_s);
        sum_channels<T>(s.coefficient, nullptr, 0, 1, n, c_one);
        sum_channels<T>(s.f[1], nullptr, 0, 1, n, f1_one);
    }
    const double scale = p.kernel->scale, beta = p.score_scale, factor = 2 * p.kernel->coefficient;
    auto difference = [&](T row, T one, T sum) { return double(p.dot ? row * one - sum : sum); };
    for (int64_t l = 0; l < std::min<int64_t>(R<T>, p.N - i0); l++)
        for (int64_t d = 0; d < D; d++) {
            const int64_t at = d * R<T> + l;
            const double c_dx = difference(s.x[0][at], c_one[l], c_x[at]);
            const double f1_dx = difference(s.x[0][at], f1_one[l], f1_x[at]);
            const double f1_ds = difference(s.x[1][at], f1_one[l], f1_s[at]);
            const int64_t out = (i0 + l) * D + d;
            x_gradient[out] = T(factor * (2 * scale * c_dx - 2 * scale * scale / beta * f1_ds));
            score_gradient[out] = T(factor * (double(f0_s[at]) / beta - 2 * scale * f1_dx));
        }
}

// A power of two that brings the scores to the size of the points, so that neither drowns in their sum: by geometric
// means, which an outlier does not move.
template <class T> T stein_score_scale(const SteinPoints<T>& x, const T* score, int64_t N, int64_t D) {
    auto mean_log = [&](const T* rows) {
        double sum = 0, count = 0;
        for (int64_t i = 0; i < N; i++) {
            double squares = 0;
            for (int64_t d = 0; d < D; d++) squares += double(rows[i * D + d]) * double(rows[i * D + d]);
            if (squares > 0 && std::isfinite(squares)) sum += 0.5 * std::log2(squares), count++;
        }
        return count > 0 ? sum / count : std::numeric_limits<double>::quiet_NaN();
    };
    const double exponent = mean_log(x.rows) - mean_log(score);
    const double most = sizeof(T) == 8 ? 900 : 100;
    return std::isfinite(exponent) ? T(std::exp2(std::clamp(std::round(exponent), -most, most))) : T(1);
}

template <class T> bool stein_element(const SteinCall<T>& call, const KernelForms<T>& forms, int64_t b, int threads) {
    const int64_t N = call.points, D = call.dim, blocks = (N + R<T> - 1) / R<T>;
    const T *x = call.x + b * N * D, *score = call.score + b * N * D;
    Arena<T> arena(3 * SteinPoints<T>::size(N, D));
    SteinPoints<T> points(arena, N, D), scores(arena, N, D), sums(arena, N, D);
    std::vector<T> centre(static_cast<size_t>(D));
    find_centre(x, N, D, centre.data());
    const Choice<T> choice = choose_kernel(forms, D, double(largest_offset(x, N, D, centre.data())), -1, true, true);
    if (!choice.kernel) return false;
    const TileKernel<T>& kernel = *choice.kernel;
    for (int64_t i = 0; i < N; i++)
        for (int64_t d = 0; d < D; d++) points.rows[i * D + d] = (x[i * D + d] - centre[d]) * T(kernel.scale);
    const T beta = stein_score_scale(points, score, N, D);
    for (int64_t at = 0; at < N * D; at++) {
        scores.rows[at] = score[at] * beta;
        sums.rows[at] = points.rows[at] + scores.rows[at];
    }
    for (SteinPoints<T>* set : {&points, &scores, &sums}) set->pack(N, D);
    const T largest = *std::max_element(points.norm, points.norm + N);
    const bool dot = D >= 8 && kernel.smooth && largest * kernel.sharpest <= T(11.5);
    SteinProblem<T> p{&kernel, N, D, call.diagonal, dot, beta, {&points, &scores, &sums}};
    std::vector<double> partial(size_t(blocks), 0.0);
    Team::form(threads, [&](Team& team, int) {
        const FlushDenormals flush;
        Arena<T> memory(SteinScratch<T>::size(D));
        SteinScratch<T> s(memory, D);
        team.loop(blocks, 1, [&](int64_t block) {
            if (call.total) partial[size_t(block)] = stein_rows(p, block * R<T>, s);
            if (call.x_gradient)
                stein_gradient_rows(p, block * R<T>, s, call.x_gradient + b * N * D, call.score_gradient + b * N * D);
        });
    });
    if (call.total) {
        call.total[b] = 0;
        for (const double sum : partial) call.total[b] += sum;
    }
    return true;
}

template <class T> void run_stein(const SteinCall<T>& call);

// One element of the batch in double, as run_wider of the reductions.
inline void run_stein_wider(const SteinCall<float>& call, int64_t b) {
    const int64_t count = call.points * call.dim;
    const std::vector<double> x(call.x + b * count, call.x + (b + 1) * count);
    const std::vector<double> score(call.score + b * count, call.score + (b + 1) * count);
    std::vector<double> gradients(size_t(call.x_gradient ? 2 * count : 0));
    double* const of_x = call.x_gradient ? gradients.data() : nullptr;
    run_stein(SteinCall<double>{call.kernel, 1, call.points, call.dim, x.data(), score.data(), call.diagonal,
                                call.total ? call.total + b : nullptr, of_x, of_x ? of_x + count : nullptr});
    if (!of_x) return;
    std::copy(of_x, of_x + count, call.x_gradient + b * count);
    std::copy(of_x + count, of_x + 2 * count, call.score_gradient + b * count);
}
inline void run_stein_wider(const SteinCall<double>&, int64_t) {}

template <class T> void run_stein(const SteinCall<T>& call) {
    const KernelForms<T> forms(call.kernel);
    const double work = double(call.points) * double(call.points) * (double(call.dim) + 1);
    const int threads = work < serial_below ? 1 : available_threads();
    for (int64_t b = 0; b < call.batch; b++)
        if (!stein_element(call, forms, b, threads)) run_stein_wider(call, b);
}

}  // namespace gwf::GWF_ISA
