// The entry points of one instruction set: splits a call over batches, blocks of rows and threads.
#pragma once
#include <atomic>
#include <chrono>
#include <deque>
#include <optional>

#include "pairwise/jet.h"
#include "pairwise/symmetric.h"
#include "team.h"

namespace gwf::GWF_ISA {

inline constexpr double serial_below = 3e6;  // pair operations, about a millisecond: waking a thread may cost as much

// Numbers a row of out and out2.
struct OutputWidths {
    int64_t first, second;
    template <class T> explicit OutputWidths(const PairwiseCall<T>& call) {
        const int64_t D = call.dim, C = call.channels;
        const bool vector_first = call.reduction == Reduction::gradient || call.reduction == Reduction::jet;
        const bool scalar_first = call.reduction == Reduction::logsumexp || call.reduction == Reduction::sum_gradient;
        first = vector_first ? D : scalar_first ? 1 : C;
        second = call.reduction == Reduction::sum_gradient ? D : call.reduction == Reduction::average ? 1 : C;
    }
};

template <class T> Problem<T> batch_element(const PairwiseCall<T>& call, int64_t b) {
    Problem<T> p{};
    const int64_t rows = call.rows, columns = call.columns, D = call.dim, C = call.channels;
    auto at = [&](auto* pointer, int64_t size) { return pointer ? pointer + b * size : nullptr; };
    p.reduction = call.reduction;
    p.N = call.row_lengths ? call.row_lengths[b] : rows;
    p.M = call.column_lengths ? call.column_lengths[b] : columns;
    p.D = D;
    p.C = C;
    p.x = at(call.x, rows * D);
    p.y = at(call.y, columns * D);
    p.a = at(call.a, rows * C);
    p.b = at(call.b, columns * C);
    p.row_shift = at(call.row_shift, rows);
    p.column_shift = at(call.column_shift, columns);
    p.exclude_self = call.exclude_self;
    p.order = call.order;
    for (int o = 0; o < call.order; o++) {
        const Tangent<T>& t = call.tangents[o];
        p.tangents[o] = {at(t.x, rows * D), at(t.y, columns * D), at(t.a, rows * C), at(t.b, columns * C)};
    }
    const auto [first, second] = OutputWidths(call);
    p.out = at(call.out, rows * first);
    p.out2 = at(call.out2, rows * second);
    // rows that do not exist, and all rows where there is no column: an empty sum
    const T empty = call.reduction == Reduction::logsumexp ? -std::numeric_limits<T>::infinity() : T(0);
    const T empty2 = call.reduction == Reduction::average ? -std::numeric_limits<T>::infinity() : T(0);
    const int64_t from = p.M == 0 ? 0 : p.N;
    std::fill(p.out + from * first, p.out + rows * first, empty);
    if (p.out2) std::fill(p.out2 + from * second, p.out2 + rows * second, empty2);
    return p;
}

template <class T> void raise_to(std::atomic<T>& largest, T value) {
    for (T seen = largest; seen < value && !largest.compare_exchange_weak(seen, value);) {
    }
}

// What every thread of a team does, or the caller alone.
template <class T>
void solve_share(Team& team, Problem<T>& p, SymmetricPlan<T>* plan, Arena<T>* plan_memory,
                 std::atomic<T>& largest_norm) {
    constexpr int64_t pack_block = 512 * PJ;
    const FlushDenormals flush;
    team.loop(p.M, pack_block, [&](int64_t j) {
        breathe(4.0 * pack_block * double(p.D));
        raise_to(largest_norm, pack_columns(p, j, std::min(p.M, j + pack_block)));
    });
    if (p.panelled() && p.x != p.y)
        team.loop(p.N, 1024, [&](int64_t i) {
            breathe(1024 * double(p.D));
            raise_to(largest_norm, largest_row_norm(p, i, std::min(p.N, i + 1024)));
        });
    team.once([&] {
        p.form = p.panelled() ? distance_form(p, largest_norm.load()) : Form::differences;
        if (plan) plan->take_arena(*plan_memory, p);
    });
    if (plan) {
        Arena<T> memory(SymmetricScratch<T>::size(p));
        SymmetricScratch<T> s(memory, p);
        team.loop(plan->workers, 1, [&](int64_t worker) { symmetric_worker(p, *plan, int(worker), s); });
        team.loop(p.N, 4096, [&](int64_t i) { symmetric_finish(p, *plan, i, std::min(p.N, i + 4096)); });
    } else if (p.jet()) {
        Arena<T> memory(JetScratch<T>::size(p));
        JetScratch<T> s(memory, p);
        team.loop(p.N, R<T>, [&](int64_t i) { jet_rows(p, i, s); });
    } else {
        Arena<T> memory(RowScratch<T>::size(p));
        RowScratch<T> s(memory, p);
        team.loop(p.N, R<T>, [&](int64_t i) { reduce_rows(p, i, s); });
    }
}

template <class T> bool is_finite(const T* values, int64_t n) {
    bool finite = true;
    for (int64_t i = 0; values && i < n; i++) finite &= std::abs(values[i]) <= std::numeric_limits<T>::max();
    return finite;
}

// A derivative of points and weights that are finite, which is not: a power of a distance left the type where the
// derivative need not. Seen afterwards, since the shortest distance is not known before.
template <class T> bool overflowed(const Problem<T>& p) {
    if (is_finite(p.out, p.N * p.D) && is_finite(p.out2, p.N * p.C)) return false;
    bool finite = is_finite(p.x, p.N * p.D) && is_finite(p.y, p.M * p.D);
    finite = finite && is_finite(p.a, p.N * p.C) && is_finite(p.b, p.M * p.C);
    for (const Tangent<T>& t : p.tangents) {
        finite = finite && is_finite(t.x, p.N * p.D) && is_finite(t.y, p.M * p.D);
        finite = finite && is_finite(t.a, p.N * p.C) && is_finite(t.b, p.M * p.C);
    }
    return finite;
}

// Whether the problem was solved; if not, it needs a wider type.
template <class T> bool solve(Problem<T>& p, const KernelForms<T>& forms, int threads) {
    if (p.N == 0 || p.M == 0) return true;
    Arena<T> columns(p.arena_size());
    p.take_arena(columns);
    find_centre(p.y, p.M, p.D, p.centre);
    if (!choose_kernel(p, forms)) return false;
    std::optional<SymmetricPlan<T>> plan;
    std::optional<Arena<T>> plan_memory;
    if (SymmetricPlan<T>::serves(p)) {
        plan.emplace(p);
        plan_memory.emplace(plan->arena_size(p));
    }
    const bool values = p.reduction == Reduction::average && p.b;
    p.reads_rows = plan || !(values || p.reduction == Reduction::sum || p.reduction == Reduction::logsumexp);
    std::atomic<T> largest_norm{0};
    Team::form(threads, [&](Team& team, int) {
        solve_share(team, p, plan ? &*plan : nullptr, plan_memory ? &*plan_memory : nullptr, largest_norm);
    });
    return sizeof(T) == 8 || !p.jet() || !overflowed(p);
}

template <class T> void run(const PairwiseCall<T>& call);

// One element of the batch in double: points at infinity, or so far apart or so close that float has no squares for it.
inline void run_wider(const PairwiseCall<float>& call, int64_t b) {
    const Problem<float> p = batch_element(call, b);
    const int64_t rows = p.N, columns = p.M, D = p.D, C = p.C;
    std::deque<std::vector<double>> memory;
    auto widen = [&](const float* values, int64_t count) -> const double* {
        return values ? memory.emplace_back(values, values + count).data() : nullptr;
    };
    PairwiseCall<double> wide{};
    wide.reduction = call.reduction;
    wide.kernel = call.kernel;
    wide.batch = 1;
    wide.rows = rows;
    wide.columns = columns;
    wide.dim = D;
    wide.channels = C;
    wide.x = widen(p.x, rows * D);
    wide.y = p.y == p.x && rows == columns ? wide.x : widen(p.y, columns * D);
    wide.a = widen(p.a, rows * C);
    wide.b = widen(p.b, columns * C);
    wide.row_shift = widen(p.row_shift, rows);
    wide.column_shift = widen(p.column_shift, columns);
    wide.exclude_self = call.exclude_self;
    wide.order = call.order;
    for (int o = 0; o < call.order; o++) {
        const Tangent<float>& t = p.tangents[o];
        wide.tangents[o] = {widen(t.x, rows * D), widen(t.y, columns * D), widen(t.a, rows * C),
                            widen(t.b, columns * C)};
    }
    const OutputWidths widths(call);
    std::vector<double> out(size_t(rows * widths.first)), out2(size_t(p.out2 ? rows * widths.second : 0));
    wide.out = out.data();
    wide.out2 = p.out2 ? out2.data() : nullptr;
    run(wide);
    std::copy(out.begin(), out.end(), p.out);
    std::copy(out2.begin(), out2.end(), p.out2);
}
inline void run_wider(const PairwiseCall<double>&, int64_t) {}  // there is none

template <class T> void run(const PairwiseCall<T>& call) {
    const KernelForms<T> forms(call.kernel);
    const double pairs = double(call.rows) * double(call.columns);
    const double work =
        pairs * (double(call.dim) / 4 + 1) * double(call.kernel.size()) * (call.reduction == Reduction::jet ? 8 : 1);
    const int threads = work * double(call.batch) < serial_below ? 1 : available_threads();
    auto solved = [&](int64_t b, int share) {
        Problem<T> p = batch_element(call, b);
        return solve(p, forms, share);
    };
    if (call.batch > 1 && (threads == 1 || call.batch >= 4 * threads || work < serial_below)) {
        std::vector<char> done(size_t(call.batch), 0);
        Team::form(threads, [&](Team& team, int) {
            team.loop(call.batch, 1, [&](int64_t b) { done[size_t(b)] = solved(b, 1); });
        });
        for (int64_t b = 0; b < call.batch; b++)
            if (!done[size_t(b)]) run_wider(call, b);
        return;
    }
    for (int64_t b = 0; b < call.batch; b++)
        if (!solved(b, threads)) run_wider(call, b);
}

// Float operations a second of one thread: independent multiply-adds from registers, the best of many short bursts.
inline double fma_peak() {
    using V = vec<float>;
    constexpr int chains = 12, repeats = 20'000, bursts = 50;
    V s[chains];
    for (int c = 0; c < chains; c++) s[c] = splat(float(c));
    const V a = pinned(0.999999f), b = pinned(1e-7f);
    double best = 0;
    for (int burst = 0; burst < bursts; burst++) {
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < repeats; i++) {
#pragma GCC unroll 12
            for (int c = 0; c < chains; c++) s[c] = s[c] * a + b;
        }
        V total{};
        for (int c = 0; c < chains; c++) total += s[c];
        volatile float sink = horizontal_sum<float>(total);
        (void)sink;
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        best = std::max(best, 2.0 * lanes<float> * chains * repeats / seconds);
    }
    return best;
}

}  // namespace gwf::GWF_ISA
