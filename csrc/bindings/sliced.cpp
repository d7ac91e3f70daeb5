// gwf_fast._cpu.sliced and sliced_sum, for kernels/cpp/sliced.py.
#include "bindings/sliced.h"

#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <stdexcept>

#include "bindings/crossing.h"
#include "sliced/sliced.h"
#include "sliced/sum.h"

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

using Pair = std::array<py::handle, 2>;  // of x and of y

Pair pair(const py::tuple& given) {
    if (given.size() != 2) throw std::invalid_argument("sliced: pairs have two members");
    return {given[0], given[1]};
}

template <class T>
void run(void (*function)(const SlicedCall<T>&), int kind, double power, double scale, const Array& x, py::handle y,
         py::handle directions, const Pair& weights, const Pair& tangents, const Pair& gradients, py::handle values,
         const Pair& counts, const Pair& potentials, const Pair& nodes) {
    Crossing crossing;
    const Array columns_of = Crossing::look(y, "y"), lines = Crossing::look(directions, "directions");
    const int64_t batch = x.size(0), rows = x.size(1), dim = x.size(2);
    const int64_t columns = columns_of.dims == 3 ? columns_of.size(1) : 0, count = lines.dims == 2 ? lines.size(0) : 0;
    const Shape of_x{batch, rows, dim}, of_y{batch, columns, dim}, per_x{batch, rows}, per_y{batch, columns};
    const int64_t terms = nodes[0].is_none() ? 0 : Crossing::look(nodes[0], "rates").count();
    if (tangents[0].is_none() != tangents[1].is_none() || potentials[0].is_none() != potentials[1].is_none())
        throw std::invalid_argument("sliced: tangents and potentials of both sets, or of none");
    if (SlicedKind(kind) == SlicedKind::power && terms == 0) throw std::invalid_argument("sliced: power needs nodes");
    const SlicedCall<T> call{.kind = SlicedKind(kind),
                             .power = power,
                             .scale = scale,
                             .batch = batch,
                             .rows = rows,
                             .columns = columns,
                             .dim = dim,
                             .directions = count,
                             .x = crossing.read<T>(x.tensor, "x", of_x),
                             .y = crossing.read<T>(y, "y", of_y),
                             .theta = crossing.read<T>(directions, "directions", {count, dim}),
                             .row_weights = crossing.read_if<double>(weights[0], "x_weights", per_x),
                             .column_weights = crossing.read_if<double>(weights[1], "y_weights", per_y),
                             .x_tangent = crossing.read_if<T>(tangents[0], "x_tangent", of_x),
                             .y_tangent = crossing.read_if<T>(tangents[1], "y_tangent", of_y),
                             .x_gradient = crossing.write_if<T>(gradients[0], "x_gradient", of_x),
                             .y_gradient = crossing.write_if<T>(gradients[1], "y_gradient", of_y),
                             .values = crossing.write<double>(values, "values", {batch, count}),
                             .row_counts = crossing.integers_if(counts[0], "x_lengths", batch, rows),
                             .column_counts = crossing.integers_if(counts[1], "y_lengths", batch, columns),
                             .x_potential = crossing.write_if<double>(potentials[0], "x_potential", per_x),
                             .y_potential = crossing.write_if<double>(potentials[1], "y_potential", per_y),
                             .nodes = terms,
                             .rates = crossing.read_if<double>(nodes[0], "rates", {terms}),
                             .coefficients = crossing.read_if<double>(nodes[1], "coefficients", {terms})};
    const py::gil_scoped_release release;
    function(call);
}

template <class T>
void run_sums(void (*function)(const SlicedSumCall<T>&), int order, double period, int64_t first, const Array& x,
              py::handle y, py::handle weights, py::handle waves, py::handle powers, const Pair& decays, double tied,
              py::handle out) {
    Crossing crossing;
    const Array charges = crossing.leading(weights, "weights", 3, 3);
    const Array sources = crossing.leading(y, "y", 2, 2);
    const int64_t lines = x.size(0), rows = x.size(1), columns = sources.size(1), channels = charges.size(1);
    const int64_t weighted = charges.size(0) == 1 ? 1 : lines;
    const int64_t modes = Crossing::look(waves, "waves").count(), count = Crossing::look(powers, "powers").count();
    const int64_t nodes = Crossing::look(decays[0], "rates").count();
    if (count > most_powers) throw std::invalid_argument("sliced_sum: too many powers");
    const SlicedSumCall<T> call{order,
                                lines,
                                rows,
                                columns,
                                channels,
                                weighted > 1 ? channels * columns : 0,
                                crossing.read<T>(x.tensor, "x", {lines, rows}),
                                crossing.read<T>(y, "y", {lines, columns}),
                                crossing.read<T>(weights, "weights", {weighted, channels, columns}),
                                period,
                                first,
                                modes,
                                count,
                                crossing.read<double>(waves, "waves", {modes}),
                                crossing.read<double>(powers, "powers", {count}),
                                nodes,
                                crossing.read<double>(decays[0], "rates", {nodes}),
                                crossing.read<double>(decays[1], "decays", {nodes}),
                                tied,
                                crossing.write<T>(out, "out", {lines, channels, rows})};
    const py::gil_scoped_release release;
    function(call);
}

}  // namespace

void bind_sliced(py::module_& m, const char* (*instruction_set)()) {
    active_set = instruction_set;
    m.def(
        "sliced",
        [](int kind, double power, double scale, py::handle x, py::handle y, py::handle directions,
           const py::tuple& weights, const py::tuple& tangents, const py::tuple& gradients, py::handle values,
           const py::tuple& counts, const py::tuple& potentials, const py::tuple& nodes) {
            const Array points = Crossing().leading(x, "x", 3, 3);
            auto call = [&]<class T>(void (*function)(const SlicedCall<T>&)) {
                run<T>(function, kind, power, scale, points, y, directions, pair(weights), pair(tangents),
                       pair(gradients), values, pair(counts), pair(potentials), pair(nodes));
            };
            points.is_double() ? call(GWF_BACKEND(sliced).run_double) : call(GWF_BACKEND(sliced).run_float);
        },
        "Values and gradients of a sliced discrepancy (csrc/sliced/sliced.h); pairs are of x and y, None where absent.",
        py::arg("kind"), py::arg("power"), py::arg("scale"), py::arg("x"), py::arg("y"), py::arg("directions"),
        py::arg("weights"), py::arg("tangents"), py::arg("gradients"), py::arg("values"), py::arg("counts"),
        py::arg("potentials"), py::arg("nodes"));
    m.def(
        "sliced_sum",
        [](int order, double period, int64_t first, py::handle x, py::handle y, py::handle weights, py::handle waves,
           py::handle powers, const py::tuple& decays, double tied, py::handle out) {
            const Array points = Crossing().leading(x, "x", 2, 2);
            auto call = [&]<class T>(void (*function)(const SlicedSumCall<T>&)) {
                run_sums<T>(function, order, period, first, points, y, weights, waves, powers, pair(decays), tied, out);
            };
            points.is_double() ? call(GWF_BACKEND(sliced_sum).run_double) : call(GWF_BACKEND(sliced_sum).run_float);
        },
        "Sums over all pairs of numbers (csrc/sliced/sum.h).", py::arg("order"), py::arg("period"), py::arg("first"),
        py::arg("x"), py::arg("y"), py::arg("weights"), py::arg("waves"), py::arg("powers"), py::arg("decays"),
        py::arg("tied"), py::arg("out"));
}

}  // namespace gwf
