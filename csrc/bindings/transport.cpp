// Entropic transport between small sets: tensors to pointers.
#include "bindings/transport.h"

#include <array>
#include <string_view>

#include "bindings/crossing.h"
#include "transport/transport.h"

namespace gwf {
namespace {

const char* (*active_set)() = nullptr;

template <class T> TransportOutcome run(const TransportCall<T>& call) {
    const py::gil_scoped_release release;
#if defined(__x86_64__)
    const std::string_view name = active_set();
    if (name == "avx512") return transport_avx512(call);
    if (name == "avx2") return transport_avx2(call);
#endif
    return transport_baseline(call);
}

// None where a tensor is absent, in the order of TransportCall.
struct Tensors {
    py::handle y, a, b;
    std::array<py::handle, 3> starts;
    py::handle x_lengths, y_lengths;
    py::sequence potentials, errors, optimum;
};

template <class T> py::object transport(const Array& x, const Tensors& tensors, const TransportNumbers& numbers) {
    Crossing crossing;
    const Array y = Crossing::look(tensors.y, "y");
    Shape batch;
    TransportCall<T> call{};
    call.numbers = numbers;
    call.batch = 1;
    for (int i = 0; i + 2 < x.dims; i++) batch.add(x.size(i)), call.batch *= x.size(i);
    call.rows = x.size(-2), call.columns = y.dims >= 2 ? y.size(-2) : 0, call.dim = x.size(-1);
    const Shape rows = batch.with(call.rows), columns = batch.with(call.columns);
    call.x = crossing.read<T>(x.tensor, "x", rows.with(call.dim));
    call.y = crossing.read<T>(tensors.y, "y", columns.with(call.dim));
    call.a = crossing.read_if<T>(tensors.a, "a", rows);
    call.b = crossing.read_if<T>(tensors.b, "b", columns);
    call.start = crossing.read_if<T>(tensors.starts[0], "start", columns);
    call.x_start = crossing.read_if<T>(tensors.starts[1], "x_start", rows);
    call.y_start = crossing.read_if<T>(tensors.starts[2], "y_start", columns);
    auto lengths = [&](py::handle tensor, const char* name, int64_t most) -> const int64_t* {
        if (tensor.is_none()) return nullptr;
        const int64_t* values = crossing.read<int64_t>(tensor, name, batch);
        for (int64_t i = 0; i < call.batch; i++)
            if (values[i] < 0 || values[i] > most)
                throw py::value_error(std::string(name) + " must lie in 0.." + std::to_string(most));
        return values;
    };
    call.row_lengths = lengths(tensors.x_lengths, "x_lengths", call.rows);
    call.column_lengths = lengths(tensors.y_lengths, "y_lengths", call.columns);
    auto write = [&](const py::sequence& of, size_t at, const char* name, const Shape& shape) {
        const py::object tensor = of[at];
        return crossing.write_if<T>(tensor, name, shape);
    };
    if (py::len(tensors.potentials)) {
        call.f = write(tensors.potentials, 0, "f", rows);
        call.g = write(tensors.potentials, 1, "g", columns);
        call.x_own = write(tensors.potentials, 2, "x_own", rows);
        call.y_own = write(tensors.potentials, 3, "y_own", columns);
    }
    if (py::len(tensors.errors)) {
        call.error = write(tensors.errors, 0, "error", batch);
        call.x_error = write(tensors.errors, 1, "x_error", batch);
        call.y_error = write(tensors.errors, 2, "y_error", batch);
    }
    if (py::len(tensors.optimum)) {
        call.value = write(tensors.optimum, 0, "value", batch);
        call.x_slope = write(tensors.optimum, 1, "x_slope", rows.with(call.dim));
        call.y_slope = write(tensors.optimum, 2, "y_slope", columns.with(call.dim));
        call.a_slope = write(tensors.optimum, 3, "a_slope", rows);
        call.b_slope = write(tensors.optimum, 4, "b_slope", columns);
        call.velocity = write(tensors.optimum, 5, "velocity", rows.with(call.dim));
    }
    if (numbers.plain && (numbers.itself || numbers.debias || call.value || call.velocity))
        throw py::value_error("plain: there are potentials, of two sets");
    if (numbers.itself && (call.rows != call.columns || numbers.debias || call.velocity))
        throw py::value_error("itself: there is one set, and one problem");
    if (!(numbers.epsilon > 0) || !(numbers.scaling >= 0) || !(numbers.scaling < 1) ||
        (numbers.only_anneal && numbers.scaling == 0) || (numbers.p != 1 && numbers.p != 2))
        throw py::value_error("epsilon, scaling or p out of range");
    const TransportOutcome outcome = run(call);
    if (!outcome.solved) return py::none();
    return py::make_tuple(outcome.sweeps[0], outcome.sweeps[1], outcome.sweeps[2], outcome.error);
}

}  // namespace

void bind_transport(py::module_& m, const char* (*instruction_set)()) {
    active_set = instruction_set;
    m.def(
        "transport",
        [](py::handle x, py::handle y, py::handle a, py::handle b, py::handle start, py::handle x_start,
           py::handle y_start, py::handle x_lengths, py::handle y_lengths, double epsilon, double strength,
           int64_t max_iterations, double tolerance, double scaling, double diameter, int p, bool itself, bool debias,
           bool only_anneal, bool plain, const py::sequence& potentials, const py::sequence& errors,
           const py::sequence& optimum) {
            const Array points = Crossing().leading(x, "x", 2, 4);
            const Tensors tensors{y,          a,      b,      {start, x_start, y_start}, x_lengths, y_lengths,
                                  potentials, errors, optimum};
            const TransportNumbers numbers{epsilon, strength, tolerance, scaling,     diameter, max_iterations,
                                           p,       itself,   debias,    only_anneal, plain};
            return (points.is_double() ? transport<double> : transport<float>)(points, tensors, numbers);
        },
        "Small entropic problems (csrc/transport/transport.h): sweeps of the three and the largest error, or None "
        "where "
        "they ask for more care. None where a tensor is absent.",
        py::arg("x"), py::arg("y"), py::arg("a"), py::arg("b"), py::arg("start"), py::arg("x_start"),
        py::arg("y_start"), py::arg("x_lengths"), py::arg("y_lengths"), py::arg("epsilon"), py::arg("strength"),
        py::arg("max_iterations"), py::arg("tolerance"), py::arg("scaling"), py::arg("diameter"), py::arg("p"),
        py::arg("itself"), py::arg("debias"), py::arg("only_anneal"), py::arg("plain"), py::arg("potentials"),
        py::arg("errors"), py::arg("optimum"), py::pos_only());
}

}  // namespace gwf
