// The entry points of one instruction set: splits a call over batches, blocks of rows and threads.
#pragma once
#include <omp.h>

#include <chrono>
#include <deque>
#include <optional>

#include "pairwise_jet.h"
#include "pairwise_symmetric.h"

namespace gwf::GWF_ISA {

inline constexpr double serial_below = 3e6;  // pair operations, about a millisecond: waking a thread may cost as much

template <class T> Problem<T> batch_element(const PairwiseCall<T>& call, const TileKernel<T>& kernel, int64_t b) {
    Problem<T> p{};
    const int64_t rows = call.rows, columns = call.columns, D = call.dim, C = call.channels;
    auto at = [&](auto* pointer, int64_t size) { return pointer ? pointer + b * size : nullptr; };
    p.kernel = &kernel;
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
    const bool vector_first = call.reduction == Reduction::gradient || call.reduction == Reduction::jet;
    const int64_t first = vector_first                                                                          ? D
                          : call.reduction == Reduction::logsumexp || call.reduction == Reduction::sum_gradient ? 1
                                                                                                                : C;
    const int64_t second = call.reduction == Reduction::sum_gradient ? D : call.reduction == Reduction::average ? 1 : C;
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

// f(i) for i = 0, step, 2 step, ... < count: shared among the threads of a team, or all by the caller, who may be one
// thread of somebody else's team.
template <bool Team, class F> void shared_loop(int64_t count, int64_t step, F f) {
    if constexpr (Team) {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; i += step) f(i);
    } else {
        for (int64_t i = 0; i < count; i += step) f(i);
    }
}

// What every thread of a team does, or the caller alone.
template <bool Team, class T>
void solve_share(Problem<T>& p, SymmetricPlan<T>* plan, Arena<T>* plan_memory, Arena<T>& memory, T& largest_norm) {
    constexpr int64_t pack_block = 512 * PJ;
    const FlushDenormals flush;
    T largest = 0;
    shared_loop<Team>(p.M, pack_block, [&](int64_t j) {
        largest = std::max(largest, pack_columns(p, j, std::min(p.M, j + pack_block)));
    });
    if (p.panelled() && p.x != p.y)
        shared_loop<Team>(p.N, 1024, [&](int64_t i) {
            largest = std::max(largest, largest_row_norm(p, i, std::min(p.N, i + 1024)));
        });
    auto after_packing = [&] {
        p.dot = p.panelled() && dot_form_is_accurate(p, largest_norm);
        if (plan) plan->take_arena(*plan_memory, p);
    };
    if constexpr (Team) {
#pragma omp critical(gwf_largest_norm)
        largest_norm = std::max(largest_norm, largest);
#pragma omp barrier
#pragma omp single
        after_packing();
    } else {
        largest_norm = largest;
        after_packing();
    }
    if (plan) {
        SymmetricScratch<T> s(memory, p);
        shared_loop<Team>(plan->workers, 1, [&](int64_t worker) { symmetric_worker(p, *plan, int(worker), s); });
        shared_loop<Team>(p.N, 4096, [&](int64_t i) { symmetric_finish(p, *plan, i, std::min(p.N, i + 4096)); });
    } else if (p.jet()) {
        JetScratch<T> s(memory, p);
        shared_loop<Team>(p.N, R<T>, [&](int64_t i) { jet_rows(p, i, s); });
    } else {
        RowScratch<T> s(memory, p);
        shared_loop<Team>(p.N, R<T>, [&](int64_t i) { reduce_rows(p, i, s); });
    }
}

template <class T> void solve(Problem<T>& p, int threads) {
    if (p.N == 0 || p.M == 0) return;
    Arena<T> columns(p.arena_size());
    p.take_arena(columns);
    find_centre(p);
    std::optional<SymmetricPlan<T>> plan;
    std::optional<Arena<T>> plan_memory;
    int64_t scratch_size = p.jet() ? JetScratch<T>::size(p) : RowScratch<T>::size(p);
    if (SymmetricPlan<T>::serves(p)) {
        plan.emplace(p);
        plan_memory.emplace(plan->arena_size(p));
        scratch_size = SymmetricScratch<T>::size(p);
    }
    const bool values = p.reduction == Reduction::average && p.b;
    p.reads_rows = plan || !(values || p.reduction == Reduction::sum || p.reduction == Reduction::logsumexp);
    T largest_norm = 0;
    SymmetricPlan<T>* plan_pointer = plan ? &*plan : nullptr;
    Arena<T>* plan_memory_pointer = plan_memory ? &*plan_memory : nullptr;
    if (threads == 1) {  // no team: forming one takes longer than a small call
        Arena<T> memory(scratch_size);
        return solve_share<false>(p, plan_pointer, plan_memory_pointer, memory, largest_norm);
    }
    std::deque<Arena<T>> scratch;  // allocated here: an exception must not leave a team
    for (int i = 0; i < threads; i++) scratch.emplace_back(scratch_size);
#pragma omp parallel num_threads(threads)
    solve_share<true>(p, plan_pointer, plan_memory_pointer, scratch[size_t(omp_get_thread_num())], largest_norm);
}

template <class T> void run(const PairwiseCall<T>& call) {
    const TileKernel<T> kernel = tile_kernel<T>(call.kernel);
    const double pairs = double(call.rows) * double(call.columns);
    const double work =
        pairs * (double(call.dim) / 4 + 1) * double(call.kernel.size()) * (call.reduction == Reduction::jet ? 8 : 1);
    const int available = omp_in_parallel() ? 1 : omp_get_max_threads();
    const int threads = work * double(call.batch) < serial_below ? 1 : available;
    if (call.batch > 1 && (threads == 1 || call.batch >= 4 * threads || work < serial_below)) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
        for (int64_t b = 0; b < call.batch; b++) {
            Problem<T> p = batch_element(call, kernel, b);
            solve(p, 1);
        }
        return;
    }
    for (int64_t b = 0; b < call.batch; b++) {
        Problem<T> p = batch_element(call, kernel, b);
        solve(p, threads);
    }
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
