// gwf_fast._cpu.Mlp: the fused perceptrons, for kernels/mlp_cpp.py, which knows tensors.
#include "module_mlp.h"

#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "mlp.h"

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

template <class T> T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

using Addresses = std::vector<uintptr_t>;

// The shape of a network. Parameters, tangents and gradients are weight, bias and, where learned, slope of each layer,
// in this order.
struct Mlp {
    std::vector<MlpLayer> layers;
    std::vector<bool> learned;
    bool residual;

    Mlp(const std::vector<int64_t>& sizes, const std::vector<int>& functions, const std::vector<double>& constants,
        const std::vector<bool>& learned_slope, bool adds_input)
        : learned(learned_slope), residual(adds_input) {
        const size_t count = functions.size();
        if (sizes.size() != count + 1 || constants.size() != count || learned.size() != count)
            throw std::invalid_argument("Mlp: one function, constant and flag a layer, and one more size than layers");
        for (size_t l = 0; l < count; l++)
            layers.push_back({sizes[l], sizes[l + 1], Function(functions[l]), constants[l]});
    }

    template <class T> MlpCall<T> call(MlpPass pass, const Addresses& addresses) const {
        MlpCall<T> made{};
        made.pass = pass;
        made.residual = residual;
        made.layers = layers;
        made.parameters = members<const T>(addresses);
        return made;
    }

    // Grouped by layer; no addresses at all stand for nulls.
    template <class T> std::vector<MlpArrays<T>> members(const Addresses& addresses) const {
        std::vector<MlpArrays<T>> list(layers.size());
        if (addresses.empty()) return list;
        size_t next = 0;
        auto take = [&] { return pointer<T>(addresses.at(next++)); };
        for (size_t l = 0; l < layers.size(); l++) {
            list[l].weight = take();
            list[l].bias = take();
            if (learned[l]) list[l].slope = take();
        }
        return list;
    }

    template <class T> MlpBatch<T> batch(int64_t rows, uintptr_t x) const {
        MlpBatch<T> made{};
        made.rows = rows;
        made.x = pointer<const T>(x);
        made.uniform_cotangent = T(1);
        made.last = layers.back().function;
        made.last_constant = layers.back().constant;
        return made;
    }
};

void run(const MlpCall<float>& call) {
    py::gil_scoped_release release;
    backend().run_float(call);
}
void run(const MlpCall<double>& call) {
    py::gil_scoped_release release;
    backend().run_double(call);
}

template <class T> void forward(const Mlp& net, int64_t rows, uintptr_t x, const Addresses& parameters, uintptr_t out) {
    MlpCall<T> call = net.call<T>(MlpPass::forward, parameters);
    MlpBatch<T> batch = net.batch<T>(rows, x);
    batch.out = pointer<T>(out);
    call.batches = {batch};
    run(call);
}

template <class T>
void backward(const Mlp& net, int64_t rows, uintptr_t x, const Addresses& parameters, uintptr_t cotangent,
              uintptr_t out, uintptr_t dx, const Addresses& gradients) {
    MlpCall<T> call = net.call<T>(MlpPass::backward, parameters);
    if (!gradients.empty()) call.gradients = net.members<T>(gradients);
    MlpBatch<T> batch = net.batch<T>(rows, x);
    batch.cotangent = pointer<const T>(cotangent);
    batch.out = pointer<T>(out);
    batch.dx = pointer<T>(dx);
    call.batches = {batch};
    run(call);
}

template <class T>
void second(const Mlp& net, int64_t rows, uintptr_t x, const Addresses& parameters, uintptr_t cotangent,
            uintptr_t x_tangent, const Addresses& tangents, uintptr_t out_tangent, uintptr_t dx,
            const Addresses& gradients) {
    MlpCall<T> call = net.call<T>(MlpPass::second, parameters);
    call.tangents = net.members<const T>(tangents);
    if (!gradients.empty()) call.gradients = net.members<T>(gradients);
    MlpBatch<T> batch = net.batch<T>(rows, x);
    batch.cotangent = pointer<const T>(cotangent);
    batch.x_tangent = pointer<const T>(x_tangent);
    batch.out_tangent = pointer<T>(out_tangent);
    batch.dx = pointer<T>(dx);
    call.batches = {batch};
    run(call);
}

// (rows, x, last function, its constant, weight, dx): the batch contributes weight * sum of its outputs
using Side = std::tuple<int64_t, uintptr_t, int, double, double, uintptr_t>;

template <class T>
double objective(const Mlp& net, const Addresses& parameters, const std::vector<Side>& sides, bool with_gradients,
                 const Addresses& gradients) {
    MlpCall<T> call = net.call<T>(with_gradients ? MlpPass::backward : MlpPass::forward, parameters);
    if (!gradients.empty()) call.gradients = net.members<T>(gradients);
    std::vector<double> totals(sides.size());
    for (size_t s = 0; s < sides.size(); s++) {
        const auto& [rows, x, last, constant, weight, dx] = sides[s];
        MlpBatch<T> batch = net.batch<T>(rows, x);
        batch.last = Function(last);
        batch.last_constant = constant;
        batch.uniform_cotangent = T(weight);
        batch.dx = pointer<T>(dx);
        batch.total = &totals[s];
        call.batches.push_back(batch);
    }
    run(call);
    double sum = 0;
    for (size_t s = 0; s < sides.size(); s++) sum += std::get<4>(sides[s]) * totals[s];
    return sum;
}

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

    py::class_<Mlp>(m, "Mlp",
                    "A network's shape; its passes take addresses of contiguous arrays, 0 where one is absent.")
        .def(py::init<const std::vector<int64_t>&, const std::vector<int>&, const std::vector<double>&,
                      const std::vector<bool>&, bool>(),
             py::arg("sizes"), py::arg("functions"), py::arg("constants"), py::arg("learned"), py::arg("residual"))
        .def("forward",
             [](const Mlp& net, bool is_double, int64_t rows, uintptr_t x, const Addresses& parameters, uintptr_t out) {
                 (is_double ? forward<double> : forward<float>)(net, rows, x, parameters, out);
             })
        .def("backward",
             [](const Mlp& net, bool is_double, int64_t rows, uintptr_t x, const Addresses& parameters,
                uintptr_t cotangent, uintptr_t out, uintptr_t dx, const Addresses& gradients) {
                 (is_double ? backward<double> : backward<float>)(net, rows, x, parameters, cotangent, out, dx,
                                                                  gradients);
             })
        .def("second",
             [](const Mlp& net, bool is_double, int64_t rows, uintptr_t x, const Addresses& parameters,
                uintptr_t cotangent, uintptr_t x_tangent, const Addresses& tangents, uintptr_t out_tangent,
                uintptr_t dx, const Addresses& gradients) {
                 (is_double ? second<double> : second<float>)(net, rows, x, parameters, cotangent, x_tangent, tangents,
                                                              out_tangent, dx, gradients);
             })
        .def("objective", [](const Mlp& net, bool is_double, const Addresses& parameters,
                             const std::vector<Side>& sides, bool with_gradients, const Addresses& gradients) {
            return (is_double ? objective<double> : objective<float>)(net, parameters, sides, with_gradients,
                                                                      gradients);
        });
}

}  // namespace gwf
