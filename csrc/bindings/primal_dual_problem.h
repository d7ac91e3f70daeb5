// A PrimalDualProblem from the dictionary that kernels/primal_dual_cpp.py makes of one, for the modules of the CPU and
// of CUDA: arrays are given by address, and lie where the loop runs.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <utility>
#include <vector>

#include "../primal_dual.h"

namespace gwf {

namespace py = pybind11;

template <class T> T* pointer(const py::handle& address) { return reinterpret_cast<T*>(address.cast<uintptr_t>()); }

inline Elementwise elementwise(const py::handle& pair) {
    const auto [function, constant] = pair.cast<std::pair<int, double>>();
    return {Function(function), constant};
}

// Weight, bias and, where learned, slope of each layer, in this order.
template <class T> std::vector<MlpArrays<T>> arrays(const py::handle& addresses, const std::vector<bool>& learned) {
    std::vector<MlpArrays<T>> list(learned.size());
    auto next = py::iter(addresses);
    auto take = [&] { return pointer<T>(*next++); };
    for (size_t l = 0; l < learned.size(); l++) {
        list[l].weight = take();
        list[l].bias = take();
        list[l].slope = learned[l] ? take() : nullptr;
    }
    return list;
}

template <class T> TrainedArrays<T> trained(const py::dict& from) {
    TrainedArrays<T> made{};
    const auto sizes = from["sizes"].cast<std::vector<int64_t>>();
    const auto functions = from["functions"].cast<std::vector<int>>();
    const auto constants = from["constants"].cast<std::vector<double>>();
    const auto learned = from["learned"].cast<std::vector<bool>>();
    for (size_t l = 0; l < functions.size(); l++)
        made.layers.push_back({sizes[l], sizes[l + 1], Function(functions[l]), constants[l]});
    made.parameters = arrays<T>(from["parameters"], learned);
    made.first_moments = arrays<T>(from["first_moments"], learned);
    made.second_moments = arrays<T>(from["second_moments"], learned);
    made.residual = from["residual"].cast<bool>();
    made.steps = from["steps"].cast<int64_t>();
    made.rate = from["rate"].cast<double>();
    return made;
}

template <class T> Density<T> density(const py::dict& from) {
    return {DensityKind(from["kind"].cast<int>()),
            from["count"].cast<int64_t>(),
            pointer<const T>(from["points"]),
            pointer<const T>(from["matrix"]),
            pointer<const T>(from["precision"]),
            pointer<const T>(from["log_weights"]),
            from["rate"].cast<double>()};
}

// Without the callbacks.
template <class T> PrimalDualProblem<T> primal_dual_problem(const py::dict& from) {
    PrimalDualProblem<T> made{};
    made.input_dim = from["input_dim"].cast<int64_t>();
    made.dim = from["dim"].cast<int64_t>();
    made.batch = from["batch"].cast<int64_t>();
    made.critic_steps = from["critic_steps"].cast<int64_t>();
    made.map_steps = from["map_steps"].cast<int64_t>();
    made.step_size = from["step_size"].cast<double>();
    made.inputs = pointer<const T>(from["inputs"]);
    made.anchors = pointer<const T>(from["anchors"]);
    made.pool_size = from["pool_size"].cast<int64_t>();
    made.whole_pool = from["whole_pool"].cast<bool>();
    made.target_kind = TargetKind(from["target_kind"].cast<int>());
    made.target = pointer<const T>(from["target"]);
    made.target_size = from["target_size"].cast<int64_t>();
    made.target_batch = from["target_batch"].cast<int64_t>();
    made.coefficient = from["coefficient"].cast<double>();
    made.map_coefficient = from["map_coefficient"].cast<double>();
    made.of_model = elementwise(from["of_model"]);
    made.of_target = elementwise(from["of_target"]);
    made.log_mean = from["log_mean"].cast<bool>();
    made.penalty = from["penalty"].cast<double>();
    made.mean = pointer<const T>(from["mean"]);
    made.with_log_mu = from["with_log_mu"].cast<bool>();
    made.log_norm = from["log_norm"].cast<double>();
    made.whitening = pointer<const T>(from["whitening"]);
    made.density = density<T>(from["density"].cast<py::dict>());
    made.map = trained<T>(from["map"].cast<py::dict>());
    if (const py::object critic = from["critic"]; !critic.is_none()) made.critic = trained<T>(critic.cast<py::dict>());
    std::tie(made.map_dropout, made.critic_dropout) = from["dropout"].cast<std::pair<double, double>>();
    const auto adam = from["adam"].cast<std::vector<double>>();
    made.adam = {adam.at(0), adam.at(1), adam.at(2), adam.at(3), adam.at(4), adam.at(5)};
    made.schedule = pointer<const double>(from["schedule"]);
    made.seed = from["seed"].cast<uint64_t>();
    made.target_stream = from["target_stream"].cast<uint32_t>();
    made.penalty_stream = from["penalty_stream"].cast<uint32_t>();
    return made;
}

}  // namespace gwf
