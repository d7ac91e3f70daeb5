// The drifts' part of gwf_fast._cpu: addresses in, addresses out.
#include "module_drift.h"

#include <pybind11/stl.h>

#include <array>
#include <string_view>

#include "drift.h"

namespace py = pybind11;

namespace gwf {
namespace {

const char* (*active_set)() = nullptr;

using Sizes = std::array<int64_t, 6>;        // batch, rows, columns, split, dim, rates
using Addresses = std::array<uintptr_t, 8>;  // x, y, weights, temperatures, own, sizes, out, total

template <class T> void drift(const Sizes& n, const Addresses& at, double floor, double clip) {
    auto p = [&](int i) { return reinterpret_cast<T*>(at[i]); };
    const auto* sizes = reinterpret_cast<const DriftSizes*>(at[5]);
    auto* total = reinterpret_cast<double*>(at[7]);
    const DriftCall<T> call{n[0], n[1], n[2], n[3],  n[4],  n[5], p(0), p(1),
                            p(2), p(3), p(4), sizes, floor, clip, p(6), total};
    py::gil_scoped_release release;
#if defined(__x86_64__)
    const std::string_view name = active_set();
    if (name == "avx512") return drift_avx512(call);
    if (name == "avx2") return drift_avx2(call);
#endif
    drift_baseline(call);
}

}  // namespace

void bind_drift(py::module_& m, const char* (*instruction_set)()) {
    active_set = instruction_set;
    m.def(
        "drift",
        [](bool is_double, const Sizes& sizes, const Addresses& addresses, double floor, double clip) {
            (is_double ? drift<double> : drift<float>)(sizes, addresses, floor, clip);
        },
        "Forces of drifting for a batch of problems (csrc/drift.h).", py::arg("is_double"), py::arg("sizes"),
        py::arg("addresses"), py::arg("floor"), py::arg("clip"));
}

}  // namespace gwf
