// gwf_fast._cpu: the compiled CPU backend. Knows pointers and sizes; kernels/cpp.py knows tensors.
#include <omp.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "module_drift.h"
#include "module_mlp.h"
#include "module_primal_dual.h"
#include "module_sliced.h"
#include "near_field.h"
#include "pairwise.h"
#include "stein.h"

namespace py = pybind11;

namespace gwf {
namespace {

std::vector<const PairwiseBackend*> supported_backends() {
    std::vector<const PairwiseBackend*> list;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd"))
        list.push_back(&pairwise_avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list.push_back(&pairwise_avx2);
#endif
    list.push_back(&pairwise_baseline);
    return list;
}

const PairwiseBackend* find_backend(const std::string& name) {
    std::string known;
    for (const PairwiseBackend* backend : supported_backends()) {
        if (name == backend->name) return backend;
        known += std::string(known.empty() ? "" : ", ") + backend->name;
    }
    throw std::invalid_argument("instruction set '" + name + "': this processor runs " + known);
}

const PairwiseBackend* initial_backend() {
    const char* wanted = std::getenv("GWF_FAST_ISA");
    return wanted && *wanted ? find_backend(wanted) : supported_backends().front();
}

const PairwiseBackend* active = nullptr;

struct Kernel {
    std::vector<Term> terms;
    explicit Kernel(const std::vector<double>& spec) {  // (profile, coefficient, bandwidth, parameter) a term
        for (size_t i = 0; i + 3 < spec.size(); i += 4)
            terms.push_back({int(spec[i]), spec[i + 1], spec[i + 2], spec[i + 3]});
    }
};

template <class T> T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

using Addresses = std::array<uintptr_t, 4>;

template <class T>
void reduce(const Kernel& kernel, int reduction, std::array<int64_t, 5> sizes, uintptr_t x, uintptr_t y, uintptr_t b,
            uintptr_t out, uintptr_t out2, bool exclude_self, uintptr_t a, uintptr_t row_shift, uintptr_t column_shift,
            uintptr_t row_lengths, uintptr_t column_lengths, const std::vector<Addresses>& tangents,
            void (*run)(const PairwiseCall<T>&)) {
    PairwiseCall<T> call{};
    call.reduction = Reduction(reduction);
    call.kernel = kernel.terms;
    call.batch = sizes[0];
    call.rows = sizes[1];
    call.columns = sizes[2];
    call.dim = sizes[3];
    call.channels = sizes[4];
    call.x = pointer<T>(x);
    call.y = pointer<T>(y);
    call.a = pointer<T>(a);
    call.b = pointer<T>(b);
    call.row_shift = pointer<T>(row_shift);
    call.column_shift = pointer<T>(column_shift);
    call.row_lengths = pointer<int64_t>(row_lengths);
    call.column_lengths = pointer<int64_t>(column_lengths);
    call.exclude_self = exclude_self;
    call.order = int(tangents.size());
    for (int o = 0; o < call.order; o++)
        call.tangents[o] = {pointer<T>(tangents[o][0]), pointer<T>(tangents[o][1]), pointer<T>(tangents[o][2]),
                            pointer<T>(tangents[o][3])};
    call.out = pointer<T>(out);
    call.out2 = pointer<T>(out2);
    py::gil_scoped_release release;
    run(call);
}

template <class T>
void stein(const Kernel& kernel, std::array<int64_t, 3> sizes, uintptr_t x, uintptr_t score, bool diagonal,
           uintptr_t total, uintptr_t x_gradient, uintptr_t score_gradient, void (*run)(const SteinCall<T>&)) {
    const SteinCall<T> call{kernel.terms,
                            sizes[0],
                            sizes[1],
                            sizes[2],
                            pointer<T>(x),
                            pointer<T>(score),
                            diagonal,
                            pointer<double>(total),
                            pointer<T>(x_gradient),
                            pointer<T>(score_gradient)};
    py::gil_scoped_release release;
    run(call);
}

void run_near_field(const NearFieldCall& call) {
#if defined(__x86_64__)
    if (active == &pairwise_avx512) return near_field_avx512(call);
    if (active == &pairwise_avx2) return near_field_avx2(call);
#endif
    near_field_baseline(call);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "Compiled CPU kernels of gwf_fast. Use gwf_fast.kernels.cpp, which checks shapes.";
    active = initial_backend();

    py::enum_<Reduction>(m, "Reduction", py::arithmetic())
        .value("sum", Reduction::sum)
        .value("gradient", Reduction::gradient)
        .value("sum_gradient", Reduction::sum_gradient)
        .value("logsumexp", Reduction::logsumexp)
        .value("average", Reduction::average)
        .value("jet", Reduction::jet);

    py::class_<Kernel>(m, "Kernel").def(py::init<const std::vector<double>&>(), py::arg("spec"));

    m.def(
        "pairwise",
        [](const Kernel& kernel, int reduction, bool is_double, int64_t batch, int64_t rows, int64_t columns,
           int64_t dim, int64_t channels, uintptr_t x, uintptr_t y, uintptr_t b, uintptr_t out, uintptr_t out2,
           bool exclude_self, uintptr_t a, uintptr_t row_shift, uintptr_t column_shift, uintptr_t row_lengths,
           uintptr_t column_lengths, const std::vector<Addresses>& tangents) {
            const std::array<int64_t, 5> sizes{batch, rows, columns, dim, channels};
            if (is_double)
                reduce<double>(kernel, reduction, sizes, x, y, b, out, out2, exclude_self, a, row_shift, column_shift,
                               row_lengths, column_lengths, tangents, active->run_double);
            else
                reduce<float>(kernel, reduction, sizes, x, y, b, out, out2, exclude_self, a, row_shift, column_shift,
                              row_lengths, column_lengths, tangents, active->run_float);
        },
        "One pairwise reduction; addresses of contiguous arrays, 0 where an array is absent.", py::arg("kernel"),
        py::arg("reduction"), py::arg("is_double"), py::arg("batch"), py::arg("rows"), py::arg("columns"),
        py::arg("dim"), py::arg("channels"), py::arg("x"), py::arg("y"), py::arg("b"), py::arg("out"),
        py::arg("out2") = 0, py::arg("exclude_self") = false, py::arg("a") = 0, py::arg("row_shift") = 0,
        py::arg("column_shift") = 0, py::arg("row_lengths") = 0, py::arg("column_lengths") = 0,
        py::arg("tangents") = std::vector<Addresses>{});

    m.def(
        "stein",
        [](const Kernel& kernel, bool is_double, std::array<int64_t, 3> sizes, uintptr_t x, uintptr_t score,
           bool diagonal, uintptr_t total, uintptr_t x_gradient, uintptr_t score_gradient) {
            if (is_double)
                stein<double>(kernel, sizes, x, score, diagonal, total, x_gradient, score_gradient,
                              active->run_stein_double);
            else
                stein<float>(kernel, sizes, x, score, diagonal, total, x_gradient, score_gradient,
                             active->run_stein_float);
        },
        "Sum of the Stein kernel over all pairs (float64) and its derivatives; addresses, 0 where not wanted.",
        py::arg("kernel"), py::arg("is_double"), py::arg("sizes"), py::arg("x"), py::arg("score"), py::arg("diagonal"),
        py::arg("total"), py::arg("x_gradient"), py::arg("score_gradient"));

    m.def(
        "near_field",
        [](const Kernel& kernel, int order, int dim, int degree, double radius, int64_t targets, int64_t stride,
           uintptr_t x, uintptr_t cell, uintptr_t y, uintptr_t weights, uintptr_t start, std::array<int64_t, 3> grid,
           int64_t reach, uintptr_t out) {
            NearFieldCall call{kernel.terms,
                               order,
                               dim,
                               degree,
                               radius,
                               targets,
                               stride,
                               pointer<double>(x),
                               pointer<int64_t>(cell),
                               pointer<double>(y),
                               pointer<double>(weights),
                               pointer<int64_t>(start),
                               {grid[0], grid[1], grid[2]},
                               reach,
                               pointer<double>(out)};
            py::gil_scoped_release release;
            run_near_field(call);
        },
        "Adds the near field of a fast summation to out; addresses of contiguous float64 and int64 arrays.",
        py::arg("kernel"), py::arg("order"), py::arg("dim"), py::arg("degree"), py::arg("radius"), py::arg("targets"),
        py::arg("stride"), py::arg("x"), py::arg("cell"), py::arg("y"), py::arg("weights"), py::arg("start"),
        py::arg("grid"), py::arg("reach"), py::arg("out"));

    m.def(
        "instruction_sets",
        [] {
            std::vector<std::string> names;
            for (const PairwiseBackend* backend : supported_backends()) names.push_back(backend->name);
            return names;
        },
        "Instruction sets that this build carries and this processor runs, best first.");
    m.def(
        "instruction_set", [] { return std::string(active->name); },
        "The one in use (GWF_FAST_ISA chooses at import).");
    m.def(
        "use_instruction_set", [](const std::string& name) { active = find_backend(name); }, py::arg("name"),
        "Switches to another instruction set, for tests and benchmarks.");
    m.def("threads", [] { return omp_get_max_threads(); }, "Threads of the pool, which is torch's own.");
    bind_drift(m, [] { return active->name; });
    bind_mlp(m, [] { return active->name; });
    bind_primal_dual(m, [] { return active->name; });
    bind_sliced(m, [] { return active->name; });
    m.def("fma_peak", [] { return active->fma_peak(); }, "Measured float32 operations per second of one thread.");
}

}  // namespace gwf
