// The drifts' part of gwf_fast._cpu.
#include "bindings/drift.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string_view>
#include <vector>

#include "bindings/crossing.h"
#include "drift/drift.h"
#include "drift/joint.h"

namespace py = pybind11;

namespace gwf {
namespace {

const char* (*active_set)() = nullptr;

template <class T> void run(const DriftCall<T>& call) {
#if defined(__x86_64__)
    const std::string_view name = active_set();
    if (name == "avx512") return drift_avx512(call);
    if (name == "avx2") return drift_avx2(call);
#endif
    drift_baseline(call);
}

template <class T>
void drift(const Array& x, py::handle targets, py::handle weights, int64_t split, py::handle sizes,
           py::handle temperatures, py::handle own, double floor, double clip, py::handle out, py::handle total,
           py::handle log_weights) {
    Crossing crossing;
    const bool by_row = !weights.is_none() && Crossing::look(weights, "weights").dims == 3;
    const int64_t batch = x.size(0), rows = x.size(1), dim = x.size(2);
    const Array y = Crossing::look(targets, "targets"), rates = Crossing::look(temperatures, "temperatures");
    const int64_t columns = y.dims == 3 ? y.size(1) : 0, count = rates.dims == 2 ? rates.size(0) : 0;
    const DriftCall<T> call{
        batch,
        rows,
        columns,
        split,
        dim,
        count,
        crossing.read<T>(x.tensor, "x", {batch, rows, dim}),
        crossing.read<T>(targets, "targets", {batch, columns, dim}),
        crossing.read_if<T>(weights, "weights", by_row ? Shape{batch, rows, columns} : Shape{batch, columns}),
        by_row,
        crossing.read_if<T>(log_weights, "log_weights", {batch, columns}),
        crossing.read<T>(temperatures, "temperatures", {count, batch}),
        crossing.read_if<T>(own, "own", {batch}),
        reinterpret_cast<const DriftSizes*>(crossing.read_if<int64_t>(sizes, "sizes", {batch, 3})),
        floor,
        clip,
        crossing.write_if<T>(out, "out", Shape{count, batch, rows}.with(dim)),
        crossing.write_if<double>(total, "total", {batch})};
    auto check = [&](const DriftSizes& size) {
        if (size.rows < 0 || size.rows > rows || size.split < 0 || size.split > size.columns || size.columns > columns)
            throw std::invalid_argument("sizes: must lie within the padded sets");
    };
    check({rows, split, columns});
    for (int64_t b = 0; call.sizes && b < batch; b++) check(call.sizes[b]);
    py::gil_scoped_release release;
    run(call);
}

// Sets are (points, weights or None).
template <class T>
bool joint_drift(const Array& x, py::handle x_weights, const py::sequence& negatives, py::handle y,
                 py::handle y_weights, const std::vector<double>& temperatures, double clip, bool exclude_self,
                 bool per_problem, py::handle velocity, py::handle scale, py::handle raw, bool logarithms) {
    Crossing crossing;
    Shape batch;
    JointCall<T> call{};
    call.batch = 1, call.dim = x.size(-1);
    for (int i = 0; i + 2 < x.dims; i++) batch.add(x.size(i)), call.batch *= x.size(i);
    auto set = [&](py::handle points, py::handle weights, const char* name) -> typename JointCall<T>::Set {
        const Array found = Crossing::look(points, name);
        const int64_t count = found.dims >= 2 ? found.size(-2) : 0;
        if (count < 1) throw py::value_error("joint_drift: a set without points");
        const bool by_row = !weights.is_none() && Crossing::look(weights, "weights").dims > x.dims - 1;
        return {count, crossing.read<T>(points, name, batch.with(count).with(call.dim)),
                crossing.read_if<T>(weights, "weights", (by_row ? batch.with(x.size(-2)) : batch).with(count)), by_row};
    };
    call.x = set(x.tensor, x_weights, "x");
    call.y = set(y, y_weights, "y");
    for (const py::handle each : negatives) {
        const auto pair = py::cast<py::sequence>(each);
        const py::object points = pair[0], weights = pair[1];
        call.negatives.push_back(set(points, weights, "negatives"));
    }
    call.temperatures = temperatures;
    call.clip = clip;
    call.exclude_self = exclude_self;
    call.released = !scale.is_none();
    call.logarithms = logarithms;
    const auto rates = int64_t(temperatures.size());
    Shape room;
    if (!call.released && rates > 1) room.add(rates);
    for (int i = 0; i < batch.count(); i++) room.add(batch[i]);
    call.velocity = crossing.write<T>(velocity, "velocity", room.with(call.x.count).with(call.dim));
    call.per_problem = per_problem;
    const Shape none;
    const Shape of_means = per_problem ? batch : none;
    call.scale = crossing.write_if<T>(scale, "scale", of_means);
    if (call.released) call.raw = crossing.write<T>(raw, "raw", of_means.with(rates));
    if (call.negatives.empty() || rates < 1 || (exclude_self && call.negatives[0].count < call.x.count))
        throw py::value_error("joint_drift: negatives, and a temperature");
    py::gil_scoped_release release;
    return Joint<T>(call, run<T>).compute();
}

}  // namespace

void bind_drift(py::module_& m, const char* (*instruction_set)()) {
    active_set = instruction_set;
    m.def(
        "drift",
        [](py::handle x, py::handle targets, py::handle weights, int64_t split, py::handle sizes,
           py::handle temperatures, py::handle own, double floor, double clip, py::handle out, py::handle total,
           py::handle log_weights) {
            const Array points = Crossing().leading(x, "x", 3, 3);
            (points.is_double() ? drift<double> : drift<float>)(points, targets, weights, split, sizes, temperatures,
                                                                own, floor, clip, out, total, log_weights);
        },
        "Forces of drifting for a batch of problems (csrc/drift/drift.h); None where an array is absent.", py::arg("x"),
        py::arg("targets"), py::arg("weights"), py::arg("split"), py::arg("sizes"), py::arg("temperatures"),
        py::arg("own"), py::arg("floor"), py::arg("clip"), py::arg("out"), py::arg("total"),
        py::arg("log_weights") = py::none());
    m.def(
        "joint_drift",
        [](py::handle x, py::handle x_weights, const py::sequence& negatives, py::handle y, py::handle y_weights,
           const std::vector<double>& temperatures, double clip, bool exclude_self, bool per_problem,
           py::handle velocity, py::handle scale, py::handle raw, bool logarithms) {
            const Array points = Crossing().leading(x, "x", 2, 4);
            return (points.is_double() ? joint_drift<double> : joint_drift<float>)(points, x_weights, negatives, y,
                                                                                   y_weights, temperatures, clip,
                                                                                   exclude_self, per_problem, velocity,
                                                                                   scale, raw, logarithms);
        },
        "Drifting from the sets themselves (csrc/drift/joint.h), released where there is room for a scale; False where "
        "coordinates ask for more care.",
        py::arg("x"), py::arg("x_weights"), py::arg("negatives"), py::arg("y"), py::arg("y_weights"),
        py::arg("temperatures"), py::arg("clip"), py::arg("exclude_self"), py::arg("per_problem"), py::arg("velocity"),
        py::arg("scale"), py::arg("raw"), py::arg("logarithms"), py::pos_only());
}

}  // namespace gwf
