// Stein variational gradient descent: tensors to pointers.
#include "bindings/svgd.h"

#include <string_view>

#include "bindings/crossing.h"
#include "svgd/svgd.h"

namespace gwf {
namespace {

const char* (*active_set)() = nullptr;

template <class T>
bool svgd(const Array& x, py::handle score, int rule, double bandwidth, py::handle out, py::handle bandwidths) {
    Crossing crossing;
    Shape batch;
    SvgdCall<T> call{};
    call.batch = 1;
    for (int i = 0; i + 2 < x.dims; i++) batch.add(x.size(i)), call.batch *= x.size(i);
    call.points = x.size(-2), call.dim = x.size(-1);
    const Shape points = batch.with(call.points).with(call.dim);
    call.rule = BandwidthRule(rule);
    call.bandwidth = bandwidth;
    call.x = crossing.read<T>(x.tensor, "x", points);
    call.out = crossing.write_if<T>(out, "out", points);
    call.score = call.out ? crossing.read<T>(score, "score", points) : nullptr;
    call.bandwidths = crossing.write_if<T>(bandwidths, "bandwidths", batch);
    if (call.points < 1 || rule < 0 || rule > 2) throw py::value_error("svgd: a rule of three, and a point");
    const py::gil_scoped_release release;
#if defined(__x86_64__)
    const std::string_view name = active_set();
    if (name == "avx512") return svgd_avx512(call);
    if (name == "avx2") return svgd_avx2(call);
#endif
    return svgd_baseline(call);
}

}  // namespace

void bind_svgd(py::module_& m, const char* (*instruction_set)()) {
    active_set = instruction_set;
    m.def(
        "svgd",
        [](py::handle x, py::handle score, int rule, double bandwidth, py::handle out, py::handle bandwidths) {
            const Array points = Crossing().leading(x, "x", 2, 4);
            return (points.is_double() ? svgd<double> : svgd<float>)(points, score, rule, bandwidth, out, bandwidths);
        },
        "Directions and bandwidths (csrc/svgd/svgd.h), None where not wanted; False where they ask for more care.",
        py::arg("x"), py::arg("score"), py::arg("rule"), py::arg("bandwidth"), py::arg("out"), py::arg("bandwidths"),
        py::pos_only());
}

}  // namespace gwf
