// A PrimalDualProblem from the dictionary that kernels/cpp/primal_dual.py makes of one, for the modules of the CPU and
// of CUDA: its tensors are checked, and lie where the loop runs.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/layers.h"
#include "primal_dual/primal_dual.h"

namespace gwf {

namespace py = pybind11;

inline Elementwise elementwise(const py::handle& pair) {
    const auto [function, constant] = pair.cast<std::pair<int, double>>();
    return {Function(function), constant};
}

template <class T> TrainedArrays<T> trained(Crossing& crossing, const py::dict& from) {
    TrainedArrays<T> made{};
    const auto learned = from["learned"].cast<std::vector<bool>>();
    made.layers = make_layers(from["sizes"].cast<std::vector<int64_t>>(), from["functions"].cast<std::vector<int>>(),
                              from["constants"].cast<std::vector<double>>(), learned);
    auto arrays = [&](const char* name) {
        const py::sequence tensors = from[name];
        if (tensors.size() == 0) throw std::invalid_argument(std::string(name) + ": there are none");
        return layer_arrays<T>(crossing, tensors, made.layers, learned);
    };
    made.parameters = arrays("parameters");
    made.first_moments = arrays("first_moments");
    made.second_moments = arrays("second_moments");
    made.residual = from["residual"].cast<bool>();
    made.steps = from["steps"].cast<int64_t>();
    made.rate = from["rate"].cast<double>();
    if (made.residual && made.layers.front().in != made.layers.back().out)
        throw std::invalid_argument("residual: a network with as many outputs as inputs");
    return made;
}

// (kind, arrays, numbers)
template <class T> Density<T> density(Crossing& crossing, const py::tuple& from) {
    Density<T> made{from[0].cast<std::string>(), {}, from[2].cast<std::vector<double>>()};
    for (const py::handle tensor : from[1].cast<py::sequence>()) {
        const Array array = crossing.leading(tensor, "density", 1, 2);
        const int64_t columns = array.size(-1), rows = array.dims == 2 ? array.size(0) : 1;
        const Shape shape = array.dims == 2 ? Shape{rows, columns} : Shape{columns};
        made.arrays.push_back({crossing.read<T>(tensor, "density", shape), rows, columns});
    }
    return made;
}

// A number of the loop by its name.
template <class V> V loop_number(const py::dict& from, const char* name) {
    if (!from.contains(name)) throw std::invalid_argument(std::string("numbers: ") + name + " is missing");
    const py::object value = from[name];
    if constexpr (std::is_same_v<V, TargetKind>) {
        const auto kind = value.cast<std::string>();
        const auto* found = std::find(std::begin(target_kinds), std::end(target_kinds), kind);
        if (found == std::end(target_kinds)) throw std::invalid_argument("numbers: there is no target_kind " + kind);
        return TargetKind(found - std::begin(target_kinds));
    } else {
        return value.cast<V>();
    }
}

inline LoopNumbers loop_numbers(const py::dict& from) {
    LoopNumbers made{};
    size_t known = 0;
#define GWF_READ(type, name) made.name = loop_number<type>(from, #name), known++;
    GWF_LOOP_NUMBERS(GWF_READ)
#undef GWF_READ
#define GWF_READ(type, name) made.adam.name = loop_number<type>(from, #name), known++;
    GWF_ADAM_NUMBERS(GWF_READ)
#undef GWF_READ
    if (known != from.size()) throw std::invalid_argument("numbers: some are not a loop's");
    return made;
}

// Without the callbacks.
template <class T> PrimalDualProblem<T> primal_dual_problem(Crossing& crossing, const py::dict& from) {
    PrimalDualProblem<T> made{loop_numbers(from["numbers"].cast<py::dict>())};
    const py::object inputs = from["inputs"], anchors = from["anchors"], target = from["target"], mean = from["mean"];
    const Array pool = crossing.leading(inputs, "inputs", 2, 2);
    const Array images = anchors.is_none() ? pool : crossing.leading(anchors, "anchors", 2, 2);
    made.input_dim = pool.size(1);
    made.dim = images.size(1);
    made.pool_size = pool.size(0);
    made.inputs = crossing.read<T>(inputs, "inputs", {made.pool_size, made.input_dim});
    made.anchors = crossing.read_if<T>(anchors, "anchors", {made.pool_size, made.dim});
    made.whole_pool = made.batch == made.pool_size;
    made.target_size = target.is_none() ? 0 : Crossing::look(target, "target").size(0);
    made.target = crossing.read_if<T>(target, "target", {made.target_size, made.dim});
    if (made.batch < 1 || made.batch > made.pool_size) throw std::invalid_argument("batch: 1 to the size of the pool");
    const bool stored = made.target_kind == TargetKind::samples || made.target_kind == TargetKind::whole;
    const bool needed = stored && !from["critic"].is_none();
    if (needed && (made.target_batch < 1 || made.target_batch > made.target_size))
        throw std::invalid_argument("target_batch: 1 to the size of the target");
    made.of_model = elementwise(from["of_model"]);
    made.of_target = elementwise(from["of_target"]);
    made.mean = crossing.read_if<T>(mean, "mean", {made.dim});
    if (made.mean) made.whitening = crossing.read<T>(from["whitening"], "whitening", {made.dim, made.dim});
    made.density = density<T>(crossing, from["density"].cast<py::tuple>());
    made.map = trained<T>(crossing, from["map"].cast<py::dict>());
    if (made.map.layers.front().in != made.input_dim || made.map.layers.back().out != made.dim)
        throw std::invalid_argument("map: from the dimension of the inputs to that of the anchors");
    if (const py::object critic = from["critic"]; !critic.is_none()) {
        made.critic = trained<T>(crossing, critic.cast<py::dict>());
        if (made.critic.layers.front().in != made.dim || made.critic.layers.back().out != 1)
            throw std::invalid_argument("critic: from the dimension of the anchors to one number");
    }
    made.iterations = Crossing::look(from["schedule"], "schedule").count();
    made.schedule = crossing.read<double>(from["schedule"], "schedule", {made.iterations});
    return made;
}

}  // namespace gwf
