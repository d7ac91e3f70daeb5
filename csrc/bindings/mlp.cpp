// gwf_fast._cpu.Mlp: the fused perceptrons, for kernels/cpp/mlp.py.
#include "bindings/mlp.h"

#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <tuple>

#include "bindings/layers.h"

namespace py = pybind11;

namespace gwf {
namespace {

const char* (*active_set)() = nullptr;

const MlpBackend& backend() {
    const char* name = active_set();
#if defined(__x86_64__)
    for (const MlpBackend* candidate : {&mlp_avx512, &mlp_avx2})
        if (std::strcmp(name, candidate->name) == 0) return *candidate;
#endif
    return mlp_baseline;
}

// The shape of a network.
struct Mlp {
    std::vector<MlpLayer> layers;
    std::vector<bool> learned;
    bool residual;

    Mlp(const std::vector<int64_t>& sizes, const std::vector<int>& functions, const std::vector<double>& constants,
        const std::vector<bool>& learned_slope, bool adds_input)
        : layers(make_layers(sizes, functions, constants, learned_slope)),
          learned(learned_slope),
          residual(adds_input) {
        if (layers.empty()) throw std::invalid_argument("Mlp: at least one layer");
    }
    int64_t in() const { return layers.front().in; }
    int64_t out() const { return layers.back().out; }
};

// One pass over a network, with the tensors that it takes.
template <class T> class Pass {
  public:
    Pass(const Mlp& net, MlpPass pass, const py::sequence& parameters) : net_(net) {
        call.pass = pass;
        call.residual = net.residual;
        call.layers = net.layers;
        if (parameters.size() == 0) throw std::invalid_argument("parameters: there are none");
        call.parameters = layer_arrays<const T>(crossing, parameters, net.layers, net.learned);
        for (const MlpArrays<const T>& layer : call.parameters)
            if (!layer.weight || !layer.bias) throw py::type_error("parameters: expected tensors, got None");
    }
    void take_gradients(const py::sequence& gradients) {
        if (gradients.size()) call.gradients = layer_arrays<T>(crossing, gradients, net_.layers, net_.learned);
    }
    MlpBatch<T>& add(py::handle x) {
        const Array rows = Crossing::look(x, "x");
        MlpBatch<T> made{};
        made.rows = rows.dims == 2 ? rows.size(0) : 0;
        made.x = crossing.read<T>(x, "x", {made.rows, net_.in()});
        made.uniform_cotangent = T(1);
        made.last = net_.layers.back().function;
        made.last_constant = net_.layers.back().constant;
        call.batches.push_back(made);
        return call.batches.back();
    }

    Crossing crossing;
    MlpCall<T> call{};

  private:
    const Mlp& net_;
};

void run(const MlpCall<float>& call) {
    py::gil_scoped_release release;
    backend().run_float(call);
}
void run(const MlpCall<double>& call) {
    py::gil_scoped_release release;
    backend().run_double(call);
}

template <class T> void forward(const Mlp& net, py::handle x, const py::sequence& parameters, py::handle out) {
    Pass<T> pass(net, MlpPass::forward, parameters);
    MlpBatch<T>& batch = pass.add(x);
    batch.out = pass.crossing.template write<T>(out, "out", {batch.rows, net.out()});
    run(pass.call);
}

template <class T>
void backward(const Mlp& net, py::handle x, const py::sequence& parameters, py::handle cotangent, py::handle out,
              py::handle dx, const py::sequence& gradients) {
    Pass<T> pass(net, MlpPass::backward, parameters);
    pass.take_gradients(gradients);
    MlpBatch<T>& batch = pass.add(x);
    const Shape results{batch.rows, net.out()}, inputs{batch.rows, net.in()};
    batch.cotangent = pass.crossing.template read_if<T>(cotangent, "cotangent", results);
    batch.out = pass.crossing.template write_if<T>(out, "out", results);
    batch.dx = pass.crossing.template write_if<T>(dx, "dx", inputs);
    run(pass.call);
}

template <class T>
void second(const Mlp& net, py::handle x, const py::sequence& parameters, py::handle cotangent, py::handle x_tangent,
            const py::sequence& tangents, py::handle out_tangent, py::handle dx, const py::sequence& gradients) {
    Pass<T> pass(net, MlpPass::second, parameters);
    pass.call.tangents = layer_arrays<const T>(pass.crossing, tangents, net.layers, net.learned);
    pass.take_gradients(gradients);
    MlpBatch<T>& batch = pass.add(x);
    const Shape results{batch.rows, net.out()}, inputs{batch.rows, net.in()};
    batch.cotangent = pass.crossing.template read<T>(cotangent, "cotangent", results);
    batch.x_tangent = pass.crossing.template read_if<T>(x_tangent, "x_tangent", inputs);
    batch.out_tangent = pass.crossing.template write<T>(out_tangent, "out_tangent", results);
    batch.dx = pass.crossing.template write_if<T>(dx, "dx", inputs);
    run(pass.call);
}

// (x, last function, its constant, weight, dx): the batch contributes weight * sum of its outputs
using Side = std::tuple<py::object, int, double, double, py::object>;

template <class T>
double objective(const Mlp& net, const py::sequence& parameters, const std::vector<Side>& sides, bool with_gradients,
                 const py::sequence& gradients) {
    Pass<T> pass(net, with_gradients ? MlpPass::backward : MlpPass::forward, parameters);
    pass.take_gradients(gradients);
    std::vector<double> totals(sides.size());
    for (size_t s = 0; s < sides.size(); s++) {
        const auto& [x, last, constant, weight, dx] = sides[s];
        MlpBatch<T>& batch = pass.add(x);
        batch.last = Function(last);
        batch.last_constant = constant;
        batch.uniform_cotangent = T(weight);
        batch.dx = pass.crossing.template write_if<T>(dx, "dx", {batch.rows, net.in()});
        batch.total = &totals[s];
    }
    run(pass.call);
    double sum = 0;
    for (size_t s = 0; s < sides.size(); s++) sum += std::get<3>(sides[s]) * totals[s];
    return sum;
}

bool is_double(py::handle x) { return Crossing().leading(x, "x", 2, 2).is_double(); }

}  // namespace

void bind_mlp(py::module_& m, const char* (*instruction_set)()) {
    active_set = instruction_set;
    py::enum_<Function>(m, "Function", py::arithmetic())
        .value("identity", Function::identity)
        .value("leaky", Function::leaky)
        .value("elu", Function::elu)
        .value("silu", Function::silu)
        .value("softplus", Function::softplus)
        .value("tanh", Function::tanh)
        .value("sigmoid", Function::sigmoid)
        .value("log_sigmoid", Function::log_sigmoid)
        .value("minus_exp", Function::minus_exp)
        .value("square", Function::square)
        .value("expm1", Function::expm1)
        .value("exp_shifted", Function::exp_shifted)
        .value("exp_tamed", Function::exp_tamed)
        .value("parabola", Function::parabola)
        .value("exp_half", Function::exp_half)
        .value("alpha_power", Function::alpha_power)
        .value("alpha_bounded", Function::alpha_bounded)
        .value("entropy_power", Function::entropy_power)
        .value("above", Function::above)
        .value("below", Function::below)
        .value("ramp_power", Function::ramp_power);

    py::class_<Mlp>(m, "Mlp", "A network's shape; its passes take tensors, None where one is absent.")
        .def(py::init<const std::vector<int64_t>&, const std::vector<int>&, const std::vector<double>&,
                      const std::vector<bool>&, bool>(),
             py::arg("sizes"), py::arg("functions"), py::arg("constants"), py::arg("learned"), py::arg("residual"))
        .def("forward",
             [](const Mlp& net, py::handle x, const py::sequence& parameters, py::handle out) {
                 (is_double(x) ? forward<double> : forward<float>)(net, x, parameters, out);
             })
        .def("backward",
             [](const Mlp& net, py::handle x, const py::sequence& parameters, py::handle cotangent, py::handle out,
                py::handle dx, const py::sequence& gradients) {
                 (is_double(x) ? backward<double> : backward<float>)(net, x, parameters, cotangent, out, dx, gradients);
             })
        .def(
            "second",
            [](const Mlp& net, py::handle x, const py::sequence& parameters, py::handle cotangent, py::handle x_tangent,
               const py::sequence& tangents, py::handle out_tangent, py::handle dx, const py::sequence& gradients) {
                (is_double(x) ? second<double> : second<float>)(net, x, parameters, cotangent, x_tangent, tangents,
                                                                out_tangent, dx, gradients);
            })
        .def("objective", [](const Mlp& net, const py::sequence& parameters, const std::vector<Side>& sides,
                             bool with_gradients, const py::sequence& gradients) {
            if (sides.empty()) throw std::invalid_argument("sides: at least one");
            const bool wide = is_double(std::get<0>(sides[0]));
            return (wide ? objective<double> : objective<float>)(net, parameters, sides, with_gradients, gradients);
        });
}

}  // namespace gwf
