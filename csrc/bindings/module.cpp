// gwf_fast._cpu: the compiled CPU backend. Tensors come in by bindings/crossing.h, which checks them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "bindings/crossing.h"
#include "bindings/direct.h"
#include "bindings/drift.h"
#include "bindings/interruption.h"
#include "bindings/mlp.h"
#include "bindings/nearest.h"
#include "bindings/primal_dual.h"
#include "bindings/sliced.h"
#include "bindings/svgd.h"
#include "bindings/transport.h"
#include "near/near_field.h"
#include "pairwise/mmd.h"
#include "pairwise/pairwise.h"
#include "stein/stein.h"
#include "team.h"

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
        if (terms.empty()) throw std::invalid_argument("spec: a kernel has terms");
    }
};

// The shapes of a reduction: x [B?, N, D], y [B?, M, D], and C channels.
struct PairShapes {
    Shape rows, columns;  // [B?, N], [B?, M]
    int64_t batch, n, m, dim;

    PairShapes(const Array& x, const Array& y) {
        const bool batched = x.dims == 3;
        batch = batched ? x.size(0) : 1;
        n = x.size(-2), m = y.dims >= 2 ? y.size(-2) : 0, dim = x.size(-1);
        if (batched) rows.add(batch), columns.add(batch);
        rows.add(n), columns.add(m);
    }
};

template <class T>
void reduce(const Kernel& kernel, int reduction, const PairShapes& shapes, py::handle x, py::handle y, py::handle b,
            py::handle out, py::handle out2, bool exclude_self, py::handle a, py::handle row_shift,
            py::handle column_shift, py::handle row_lengths, py::handle column_lengths, const py::sequence& tangents,
            void (*run)(const PairwiseCall<T>&)) {
    Crossing crossing;
    const auto& [rows, columns, batch, n, m, dim] = shapes;
    const auto kind = Reduction(reduction);
    PairwiseCall<T> call{};
    call.reduction = kind;
    call.kernel = kernel.terms;
    call.batch = batch, call.rows = n, call.columns = m, call.dim = dim, call.channels = 1;
    call.x = crossing.read<T>(x, "x", rows.with(dim));
    call.y = crossing.read<T>(y, "y", columns.with(dim));
    const bool jet = kind == Reduction::jet;
    bool channels = jet || kind == Reduction::average;
    if (!b.is_none()) {
        const Array weights = Crossing::look(b, "weights");
        channels |= kind == Reduction::sum && weights.dims == columns.count() + 1;
        if (channels && weights.dims > 0) call.channels = weights.size(-1);
    } else if (kind == Reduction::average) {
        call.channels = dim;
    }
    const Shape of_rows = channels ? rows.with(call.channels) : rows;
    const Shape of_columns = channels ? columns.with(call.channels) : columns;
    call.b = jet ? crossing.read<T>(b, "b", of_columns) : crossing.read_if<T>(b, "weights", of_columns);
    call.row_shift = crossing.read_if<T>(row_shift, "row_shift", rows);
    call.column_shift = crossing.read_if<T>(column_shift, "log_weights", columns);
    call.row_lengths = crossing.integers_if(row_lengths, "x_lengths", batch, n);
    call.column_lengths = crossing.integers_if(column_lengths, "y_lengths", batch, m);
    call.exclude_self = exclude_self;
    const Shape points = rows.with(dim);
    call.out = crossing.write<T>(out, "out", kind == Reduction::gradient || jet ? points : of_rows);
    if (jet) {
        call.a = crossing.read<T>(a, "a", of_rows);
        call.out2 = crossing.write<T>(out2, "out2", of_rows);
        call.order = int(tangents.size());
        if (call.order > 2) throw std::invalid_argument("tangents: at most 2");
        for (int o = 0; o < call.order; o++) {
            const py::sequence t = tangents[size_t(o)];
            call.tangents[o] = {crossing.read_if<T>(t[0], "dx", points),
                                crossing.read_if<T>(t[1], "dy", columns.with(dim)),
                                crossing.read_if<T>(t[2], "da", of_rows), crossing.read_if<T>(t[3], "db", of_columns)};
        }
    } else if (kind == Reduction::sum_gradient || kind == Reduction::average) {
        call.out2 = crossing.write<T>(out2, "out2", kind == Reduction::average ? rows : points);
    }
    py::gil_scoped_release release;
    run(call);
}

template <class T>
void stein(const Kernel& kernel, const Array& x, py::handle score, bool diagonal, py::handle total,
           py::handle x_gradient, py::handle score_gradient, void (*run)(const SteinCall<T>&)) {
    Crossing crossing;
    const Shape points{x.size(0), x.size(1), x.size(2)};
    const SteinCall<T> call{kernel.terms,
                            x.size(0),
                            x.size(1),
                            x.size(2),
                            crossing.read<T>(x.tensor, "x", points),
                            crossing.read<T>(score, "score", points),
                            diagonal,
                            crossing.write_if<double>(total, "total", {x.size(0)}),
                            crossing.write_if<T>(x_gradient, "x_gradient", points),
                            crossing.write_if<T>(score_gradient, "score_gradient", points)};
    if (!call.x_gradient != !call.score_gradient) throw std::invalid_argument("stein: both gradients, or none");
    py::gil_scoped_release release;
    run(call);
}

template <class T>
void mmd(const Kernel& kernel, const PairShapes& shapes, py::handle x, py::handle y, py::handle a, py::handle b,
         bool unbiased, py::handle value, const std::array<py::handle, 4>& gradients,
         void (*run)(const PairwiseCall<T>&)) {
    Crossing crossing;
    const auto& [rows, columns, batch, n, m, dim] = shapes;
    Shape of_batch;
    if (rows.count() == 2) of_batch.add(batch);
    const MmdCall<T> call{kernel.terms,
                          batch,
                          n,
                          m,
                          dim,
                          crossing.read<T>(x, "x", rows.with(dim)),
                          crossing.read<T>(y, "y", columns.with(dim)),
                          crossing.read_if<T>(a, "x_weights", rows),
                          crossing.read_if<T>(b, "y_weights", columns),
                          unbiased,
                          crossing.write<T>(value, "value", of_batch),
                          crossing.write_if<T>(gradients[0], "x_gradient", rows.with(dim)),
                          crossing.write_if<T>(gradients[1], "y_gradient", columns.with(dim)),
                          crossing.write_if<T>(gradients[2], "x_weights_gradient", rows),
                          crossing.write_if<T>(gradients[3], "y_weights_gradient", columns)};
    if (n < 1 || m < 1) throw py::value_error("mmd: a set without points");
    py::gil_scoped_release release;
    Mmd<T>(call, run).compute();
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
    m.doc() = "Compiled CPU kernels of gwf_fast. Use gwf_fast.kernels.cpp.pairs, which checks shapes.";
    active = initial_backend();
    check_interruption = check_signals;

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
        [](const Kernel& kernel, int reduction, py::handle x, py::handle y, py::handle b, py::handle out,
           py::handle out2, bool exclude_self, py::handle a, py::handle row_shift, py::handle column_shift,
           py::handle row_lengths, py::handle column_lengths, const py::sequence& tangents) {
            Crossing crossing;
            const Array first = crossing.leading(x, "x", 2, 3);
            const PairShapes shapes(first, Crossing::look(y, "y"));
            if (first.is_double())
                reduce<double>(kernel, reduction, shapes, x, y, b, out, out2, exclude_self, a, row_shift, column_shift,
                               row_lengths, column_lengths, tangents, active->run_double);
            else
                reduce<float>(kernel, reduction, shapes, x, y, b, out, out2, exclude_self, a, row_shift, column_shift,
                              row_lengths, column_lengths, tangents, active->run_float);
        },
        "One pairwise reduction; None where an array is absent.", py::arg("kernel"), py::arg("reduction"), py::arg("x"),
        py::arg("y"), py::arg("b"), py::arg("out"), py::arg("out2") = py::none(), py::arg("exclude_self") = false,
        py::arg("a") = py::none(), py::arg("row_shift") = py::none(), py::arg("column_shift") = py::none(),
        py::arg("row_lengths") = py::none(), py::arg("column_lengths") = py::none(), py::arg("tangents") = py::tuple());

    m.def(
        "mmd",
        [](const Kernel& kernel, py::handle x, py::handle y, py::handle a, py::handle b, bool unbiased,
           py::handle value, py::handle gx, py::handle gy, py::handle ga, py::handle gb) {
            const Array first = Crossing().leading(x, "x", 2, 3);
            const PairShapes shapes(first, Crossing::look(y, "y"));
            const std::array<py::handle, 4> gradients{gx, gy, ga, gb};
            if (first.is_double())
                mmd<double>(kernel, shapes, x, y, a, b, unbiased, value, gradients, active->run_double);
            else
                mmd<float>(kernel, shapes, x, y, a, b, unbiased, value, gradients, active->run_float);
        },
        "The squared MMD and its gradients (csrc/pairwise/mmd.h); None where an array is absent.", py::arg("kernel"),
        py::arg("x"), py::arg("y"), py::arg("a"), py::arg("b"), py::arg("unbiased"), py::arg("value"),
        py::arg("x_gradient"), py::arg("y_gradient"), py::arg("a_gradient"), py::arg("b_gradient"), py::pos_only());

    m.def(
        "stein",
        [](const Kernel& kernel, py::handle x, py::handle score, bool diagonal, py::handle total, py::handle x_gradient,
           py::handle score_gradient) {
            const Array points = Crossing().leading(x, "x", 3, 3);
            if (points.is_double())
                stein<double>(kernel, points, score, diagonal, total, x_gradient, score_gradient,
                              active->run_stein_double);
            else
                stein<float>(kernel, points, score, diagonal, total, x_gradient, score_gradient,
                             active->run_stein_float);
        },
        "Sum of the Stein kernel over all pairs (float64) and its derivatives; None where not wanted.",
        py::arg("kernel"), py::arg("x"), py::arg("score"), py::arg("diagonal"), py::arg("total") = py::none(),
        py::arg("x_gradient") = py::none(), py::arg("score_gradient") = py::none());

    m.def(
        "near_field",
        [](const Kernel& kernel, int order, int degree, double radius, py::handle x, py::handle cell, py::handle y,
           py::handle start, std::array<int64_t, 3> grid, int64_t reach, py::handle out) {
            Crossing crossing;
            const Array points = crossing.leading(x, "x", 2, 2), sources = crossing.leading(y, "y", 2, 2);
            const int64_t targets = points.size(0), dim = points.size(1), stride = sources.size(1);
            if (dim < 1 || dim > 3 || order < 0 || order > 2) throw std::invalid_argument("near_field: D or order");
            const int64_t components[] = {1, dim, dim * (dim + 1) / 2};
            const int64_t cells = grid[0] * grid[1] * grid[2];
            const auto* packed = crossing.read<double>(y, "y", {dim + 1, stride});  // the weights come last
            NearFieldCall call{kernel.terms,
                               order,
                               int(dim),
                               degree,
                               radius,
                               targets,
                               stride,
                               crossing.read<double>(x, "x", {targets, dim}),
                               crossing.integers_if(cell, "cell", targets, cells - 1),
                               packed,
                               packed + dim * stride,
                               crossing.integers_if(start, "start", cells + 1, stride - 8),
                               {grid[0], grid[1], grid[2]},
                               reach,
                               crossing.write<double>(out, "out", {targets, components[order]})};
            py::gil_scoped_release release;
            run_near_field(call);
        },
        "Adds the near field of a fast summation to out; y [D + 1, M + 8] ends in the weights.", py::arg("kernel"),
        py::arg("order"), py::arg("degree"), py::arg("radius"), py::arg("x"), py::arg("cell"), py::arg("y"),
        py::arg("start"), py::arg("grid"), py::arg("reach"), py::arg("out"));

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
    m.def("threads", available_threads,
          "Threads that a call may use: those of the pool, which is torch's own; one in a forked child.");
    bind_direct(m, [] { return active; });
    bind_drift(m, [] { return active->name; });
    bind_svgd(m, [] { return active->name; });
    bind_transport(m, [] { return active->name; });
    bind_mlp(m, [] { return active->name; });
    bind_primal_dual(m, [] { return active->name; });
    bind_nearest(m, [] { return active->name; });
    bind_sliced(m, [] { return active->name; });
    m.def("fma_peak", [] { return active->fma_peak(); }, "Measured float32 operations per second of one thread.");
}

}  // namespace gwf
