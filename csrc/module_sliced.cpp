// gwf_fast._cpu.sliced, for kernels/sliced_cpp.py, which knows tensors.
#include "module_sliced.h"

#include <pybind11/stl.h>

#include <array>
#include <cstring>

#include "sliced.h"

namespace py = pybind11;

namespace gwf {
namespace {

const char* (*active_set)() = nullptr;

const SlicedBackend& backend() {
#if defined(__x86_64__)
    for (const SlicedBackend* candidate : {&sliced_avx512, &sliced_avx2})
        if (std::strcmp(active_set(), candidate->name) == 0) return *candidate;
#endif
    return sliced_baseline;
}

template <class T>
void run(void (*function)(const SlicedCall<T>&), int kind, double power, double scale,
         const std::array<int64_t, 5>& sizes, const std::array<uintptr_t, 10>& at) {
    auto pointer = [&](int i) { return reinterpret_cast<T*>(at[size_t(i)]); };
    auto doubles = [&](int i) { return reinterpret_cast<double*>(at[size_t(i)]); };
    const SlicedCall<T> call{SlicedKind(kind), power,      scale,      sizes[0],   sizes[1],   sizes[2],
                             sizes[3],         sizes[4],   pointer(0), pointer(1), pointer(2), doubles(3),
                             doubles(4),       pointer(5), pointer(6), pointer(7), pointer(8), doubles(9)};
    const py::gil_scoped_release release;
    function(call);
}

}  // namespace

void bind_sliced(py::module_& m, const char* (*instruction_set)()) {
    active_set = instruction_set;
    m.def(
        "sliced",
        [](bool is_double, int kind, double power, double scale, const std::array<int64_t, 5>& sizes,
           const std::array<uintptr_t, 10>& addresses) {
            if (is_double)
                run<double>(backend().run_double, kind, power, scale, sizes, addresses);
            else
                run<float>(backend().run_float, kind, power, scale, sizes, addresses);
        },
        "Values and gradients of a sliced discrepancy; see SlicedCall for sizes and addresses, in its order.",
        py::arg("is_double"), py::arg("kind"), py::arg("power"), py::arg("scale"), py::arg("sizes"),
        py::arg("addresses"));
}

}  // namespace gwf
