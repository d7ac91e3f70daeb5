// gwf_fast._cpu.sliced and sliced_sum, for kernels/sliced_cpp.py, which knows tensors.
#include "module_sliced.h"

#include <pybind11/stl.h>

#include <array>
#include <cstring>

#include "sliced.h"
#include "sliced_sum.h"

namespace py = pybind11;

namespace gwf {
namespace {

const char* (*active_set)() = nullptr;

template <class Backend> const Backend& backend(const Backend& avx512, const Backend& avx2, const Backend& baseline) {
    for (const Backend* candidate : {&avx512, &avx2})
        if (std::strcmp(active_set(), candidate->name) == 0) return *candidate;
    return baseline;
}

#if defined(__x86_64__)
#define GWF_BACKEND(name) backend(name##_avx512, name##_avx2, name##_baseline)
#else
#define GWF_BACKEND(name) name##_baseline
#endif

template <class T>
void run(void (*function)(const SlicedCall<T>&), int kind, double power, double scale,
         const std::array<int64_t, 6>& sizes, const std::array<uintptr_t, 16>& at) {
    auto pointer = [&](int i) { return reinterpret_cast<T*>(at[size_t(i)]); };
    auto doubles = [&](int i) { return reinterpret_cast<double*>(at[size_t(i)]); };
    auto counts = [&](int i) { return reinterpret_cast<const int64_t*>(at[size_t(i)]); };
    const SlicedCall<T> call{.kind = SlicedKind(kind),
                             .power = power,
                             .scale = scale,
                             .batch = sizes[0],
                             .rows = sizes[1],
                             .columns = sizes[2],
                             .dim = sizes[3],
                             .directions = sizes[4],
                             .x = pointer(0),
                             .y = pointer(1),
                             .theta = pointer(2),
                             .row_weights = doubles(3),
                             .column_weights = doubles(4),
                             .x_tangent = pointer(5),
                             .y_tangent = pointer(6),
                             .x_gradient = pointer(7),
                             .y_gradient = pointer(8),
                             .values = doubles(9),
                             .row_counts = counts(10),
                             .column_counts = counts(11),
                             .x_potential = doubles(12),
                             .y_potential = doubles(13),
                             .nodes = sizes[5],
                             .rates = doubles(14),
                             .coefficients = doubles(15)};
    const py::gil_scoped_release release;
    function(call);
}

template <class T>
void run_sums(void (*function)(const SlicedSumCall<T>&), int order, const std::array<int64_t, 8>& sizes, double period,
              const std::array<uintptr_t, 6>& at) {
    const SlicedSumCall<T> call{order,
                                sizes[0],
                                sizes[1],
                                sizes[2],
                                sizes[3],
                                sizes[4],
                                reinterpret_cast<const T*>(at[0]),
                                reinterpret_cast<const T*>(at[1]),
                                reinterpret_cast<const T*>(at[2]),
                                period,
                                sizes[5],
                                sizes[6],
                                sizes[7],
                                reinterpret_cast<const double*>(at[3]),
                                reinterpret_cast<const double*>(at[4]),
                                reinterpret_cast<T*>(at[5])};
    if (call.powers > most_powers) throw std::invalid_argument("sliced_sum: too many powers");
    const py::gil_scoped_release release;
    function(call);
}

}  // namespace

void bind_sliced(py::module_& m, const char* (*instruction_set)()) {
    active_set = instruction_set;
    m.def(
        "sliced",
        [](bool is_double, int kind, double power, double scale, const std::array<int64_t, 6>& sizes,
           const std::array<uintptr_t, 16>& addresses) {
            if (is_double)
                run<double>(GWF_BACKEND(sliced).run_double, kind, power, scale, sizes, addresses);
            else
                run<float>(GWF_BACKEND(sliced).run_float, kind, power, scale, sizes, addresses);
        },
        "Values and gradients of a sliced discrepancy; see SlicedCall for sizes and addresses, in its order.",
        py::arg("is_double"), py::arg("kind"), py::arg("power"), py::arg("scale"), py::arg("sizes"),
        py::arg("addresses"));
    m.def(
        "sliced_sum",
        [](bool is_double, int order, const std::array<int64_t, 8>& sizes, double period,
           const std::array<uintptr_t, 6>& addresses) {
            if (is_double)
                run_sums<double>(GWF_BACKEND(sliced_sum).run_double, order, sizes, period, addresses);
            else
                run_sums<float>(GWF_BACKEND(sliced_sum).run_float, order, sizes, period, addresses);
        },
        "Sums over all pairs of numbers; see SlicedSumCall for sizes and addresses, in its order.",
        py::arg("is_double"), py::arg("order"), py::arg("sizes"), py::arg("period"), py::arg("addresses"));
}

}  // namespace gwf
