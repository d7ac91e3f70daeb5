// Drifting for a batch: problems whose distances fit a core's cache one at a time and thread, others one after another
// on all threads.
#pragma once
#include "drift/stream.h"

namespace gwf::GWF_ISA {

inline constexpr int64_t cached_pairs = int64_t(1) << 17;

template <class T> void drift(const DriftCall<T>& call) {
    const int64_t stride = call.batch * call.rows * call.dim;
    auto size_of = [&](int64_t b) {
        return call.sizes ? call.sizes[b] : DriftSizes{call.rows, call.split, call.columns};
    };
    // Lanes are targets there: with few of them most lanes would be empty.
    auto is_small = [](const DriftSizes& size) {
        return size.rows * size.columns <= cached_pairs && size.rows <= size.columns;
    };
    auto solve = [&](int64_t b, bool small) {
        const DriftSizes size = size_of(b);
        if (is_small(size) != small) return;
        T* out = call.out ? call.out + b * call.rows * call.dim : nullptr;
        double total = 0;
        if (size.rows)
            total = small ? small_drift(call, size, b, out, stride) : stream_drift(call, size, b, out, stride);
        for (int64_t k = 0; out && k < call.rates; k++)
            std::fill(out + k * stride + size.rows * call.dim, out + k * stride + call.rows * call.dim, T(0));
        if (call.total) call.total[b] = total;
    };
    const double work = double(call.batch) * double(call.rows) * double(call.columns) * double(call.dim + 8);
    Team::form(work < 3e6 ? 1 : available_threads(),
               [&](Team& team, int) { team.loop(call.batch, 1, [&](int64_t b) { solve(b, true); }); });
    for (int64_t b = 0; b < call.batch; b++) solve(b, false);
}

}  // namespace gwf::GWF_ISA
