// One set of particles at a time and thread: its squared distances are computed once, and stay in cache for the median
// and for the kernel.
#pragma once
#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "memory.h"
#include "simd/math.h"
#include "svgd/svgd.h"
#include "team.h"

namespace gwf::GWF_ISA::svgd {

using Vec = vec<double>;
inline constexpr int64_t L = lanes<double>;

// The values of two neighbouring ranks, low <= high, of finite numbers >= 0; their order is lost. Of many, only those
// are sorted that share their leading bits with one of the two.
inline std::pair<double, double> order_statistics(double* values, int64_t count, int64_t low, int64_t high) {
    constexpr int64_t few = 512, buckets = 2048;
    if (count > few) {
        auto leading = [](double value) { return int64_t(std::bit_cast<uint64_t>(value) >> 44); };  // 8 of the fraction
        const int64_t most = leading(*std::max_element(values, values + count));
        auto bucket = [&](double value) { return std::max<int64_t>(0, leading(value) - most + buckets - 1); };
        int32_t sizes[buckets] = {};
        for (int64_t i = 0; i < count; i++) sizes[bucket(values[i])]++;
        int64_t first = 0, skipped = 0;
        for (; skipped + sizes[first] <= low; first++) skipped += sizes[first];
        int64_t last = first, end = skipped + sizes[first];
        while (end <= high) end += sizes[++last];
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++)
            if (const int64_t at = bucket(values[i]); at >= first && at <= last) values[kept++] = values[i];
        count = kept, low -= skipped, high -= skipped;
    }
    std::nth_element(values, values + high, values + count);
    return {low == high ? values[high] : *std::max_element(values, values + high), values[high]};
}

// Lanes are particles; those beyond the last repeat it.
struct Cloud {
    int64_t n, D, width = (n + L - 1) / L * L;
    double *x, *score;  // [D][width]
    double* squares;    // [n][width]
    double* pairs;      // [n (n - 1) / 2]
    double* sums;       // [D][L]

    static int64_t size(int64_t n, int64_t D) { return (2 * D + n) * (n + L) + n * n / 2 + D * L + 5 * 16; }
    Cloud(Arena<double>& arena, int64_t n, int64_t D)
        : n(n),
          D(D),
          x(arena.take(D * width)),
          score(arena.take(D * width)),
          squares(arena.take(n * width)),
          pairs(arena.take(n * (n - 1) / 2)),
          sums(arena.take(D * L)) {}

    template <class T> bool read(const T* from, double* to) const {
        bool finite = true;
        for (int64_t i = 0; i < width; i++)
            for (int64_t d = 0; d < D; d++) {
                const double value = from[std::min(i, n - 1) * D + d];
                finite &= std::isfinite(value);
                to[d * width + i] = value;
            }
        return finite;
    }

    void measure() {
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < width; i += L) {
                Vec square{};
                for (int64_t d = 0; d < D; d++) {
                    const Vec e = load(x + d * width + i) - x[d * width + j];
                    square += e * e;
                }
                store(squares + j * width + i, square);
            }
    }

    // h of the rule; 0 where there is no pair.
    double bandwidth(BandwidthRule rule) const {
        const int64_t count = n * (n - 1) / 2;
        for (int64_t j = 0, at = 0; j < n; at += j++) std::copy_n(squares + j * width, j, pairs + at);
        // Among all N^2, N zeros come first and each pair twice.
        int64_t low = (count - 1) / 2, high = low;
        if (rule == BandwidthRule::all) low = ((n * n - 1) / 2 - n) / 2, high = (n * n / 2 - n) / 2;
        if (count == 0) return 0;
        const bool lower_is_own = rule == BandwidthRule::all && (n * n - 1) / 2 < n;
        const bool upper_is_own = rule == BandwidthRule::all && n * n / 2 < n;
        if (upper_is_own) return 0;
        auto [lower, upper] = order_statistics(pairs, count, lower_is_own ? high : low, high);
        if (lower_is_own) lower = 0;
        return std::sqrt(0.5 * (lower + upper) / (2 * std::log(double(n + 1))));
    }

    template <class T> void direct(double h, T* out) const {
        const double unit = 0.5 * 1.4426950408889634 / (h * h), per_square = 1 / (h * h);
        for (int64_t i = 0; i < width; i += L) {
            breathe(double(n * L * (D + 20)));
            std::fill(sums, sums + D * L, 0.0);
            for (int64_t j = 0; j < n; j++) {
                const Vec k = exp2_any<true>(Vec(load(squares + j * width + i) * unit)), push = k * per_square;
                for (int64_t d = 0; d < D; d++) {
                    const Vec away = load(x + d * width + i) - x[d * width + j];
                    store(sums + d * L, Vec(load(sums + d * L) + (k * score[d * width + j] + push * away)));
                }
            }
            for (int64_t l = 0; l < std::min(L, n - i); l++)
                for (int64_t d = 0; d < D; d++) out[(i + l) * D + d] = T(sums[d * L + l] / double(n));
        }
    }
};

template <class T> bool solve(const SvgdCall<T>& call, int64_t b) {
    const FlushDenormals flush;
    const int64_t n = call.points, D = call.dim, offset = b * n * D;
    Arena<double> memory(Cloud::size(n, D));
    Cloud cloud(memory, n, D);
    if (!cloud.read(call.x + offset, cloud.x)) return false;
    if (call.out && !cloud.read(call.score + offset, cloud.score)) return false;
    cloud.measure();
    const double h = call.rule == BandwidthRule::given ? call.bandwidth : cloud.bandwidth(call.rule);
    const double largest = *std::max_element(cloud.squares, cloud.squares + n * cloud.width);
    if (!(h > 1e-140 && h < 1e140 && largest < 1e280)) return false;
    if (call.bandwidths) call.bandwidths[b] = T(h);
    if (call.out) cloud.direct(h, call.out + offset);
    return true;
}

template <class T> bool run(const SvgdCall<T>& call) {
    std::vector<char> solved(static_cast<size_t>(call.batch));
    const double work = double(call.batch) * double(call.points) * double(call.points) * double(call.dim + 8);
    Team::form(work < 3e6 ? 1 : available_threads(), [&](Team& team, int) {
        team.loop(call.batch, 1, [&](int64_t b) { solved[size_t(b)] = solve(call, b); });
    });
    return std::all_of(solved.begin(), solved.end(), [](char each) { return each; });
}

}  // namespace gwf::GWF_ISA::svgd
