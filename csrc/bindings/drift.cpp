// The drifts' part of gwf_fast._cpu.
#include "bindings/drift.h"

#include <stdexcept>
#include <string_view>

#include "bindings/crossing.h"
#include "drift/drift.h"

namespace py = pybind11;

namespace gwf {
namespace {

const char* (*active_set)() = nullptr;

template <class T>
void drift(const Array& x, py::handle targets, py::handle weights, int64_t split, py::handle sizes,
           py::handle temperatures, py::handle own, double floor, double clip, py::handle out, py::handle total) {
    Crossing crossing;
    const int64_t batch = x.size(0), rows = x.size(1), dim = x.size(2);
    const Array y = Crossing::look(targets, "targets"), rates = Crossing::look(temperatures, "temperatures");
    const int64_t columns = y.dims == 3 ? y.size(1) : 0, count = rates.dims == 2 ? rates.size(0) : 0;
    const DriftCall<T> call{batch,
                            rows,
                            columns,
                            split,
                            dim,
                            count,
                            crossing.read<T>(x.tensor, "x", {batch, rows, dim}),
                            crossing.read<T>(targets, "targets", {batch, columns, dim}),
                            crossing.read_if<T>(weights, "weights", {batch, columns}),
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
        [](py::handle x, py::handle targets, py::handle weights, int64_t split, py::handle sizes,
           py::handle temperatures, py::handle own, double floor, double clip, py::handle out, py::handle total) {
            const Array points = Crossing().leading(x, "x", 3, 3);
            (points.is_double() ? drift<double> : drift<float>)(points, targets, weights, split, sizes, temperatures,
                                                                own, floor, clip, out, total);
        },
        "Forces of drifting for a batch of problems (csrc/drift/drift.h); None where an array is absent.", py::arg("x"),
        py::arg("targets"), py::arg("weights"), py::arg("split"), py::arg("sizes"), py::arg("temperatures"),
        py::arg("own"), py::arg("floor"), py::arg("clip"), py::arg("out"), py::arg("total"));
}

}  // namespace gwf
