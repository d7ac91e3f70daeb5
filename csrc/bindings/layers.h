// A perceptron's tensors as its layers' arrays, for all that is bound about networks.
#pragma once
#include <stdexcept>
#include <vector>

#include "bindings/crossing.h"
#include "mlp/mlp.h"

namespace gwf {

// The layers of a network from its widths and the functions that follow them.
inline std::vector<MlpLayer> make_layers(const std::vector<int64_t>& sizes, const std::vector<int>& functions,
                                         const std::vector<double>& constants, const std::vector<bool>& learned) {
    const size_t count = functions.size();
    if (sizes.size() != count + 1 || constants.size() != count || learned.size() != count)
        throw std::invalid_argument("Mlp: one function, constant and flag a layer, and one more size than layers");
    std::vector<MlpLayer> layers;
    for (size_t l = 0; l < count; l++) layers.push_back({sizes[l], sizes[l + 1], Function(functions[l]), constants[l]});
    return layers;
}

// Weight, bias and, where learned, slope of each layer, in this order; each of the shape that its layer has. With T
// const they are read, and None is a null; else they are written. No tensors at all stand for nulls.
template <class T>
std::vector<MlpArrays<T>> layer_arrays(Crossing& crossing, const pybind11::sequence& tensors,
                                       const std::vector<MlpLayer>& layers, const std::vector<bool>& learned) {
    std::vector<MlpArrays<T>> list(layers.size());
    if (tensors.size() == 0) return list;
    size_t next = 0;
    auto take = [&](const char* name, const Shape& shape) -> T* {
        if (next == tensors.size()) throw std::invalid_argument("parameters: fewer than the layers have");
        const pybind11::object tensor = tensors[next++];
        if constexpr (std::is_const_v<T>)
            return crossing.read_if<std::remove_const_t<T>>(tensor, name, shape);
        else
            return crossing.write<T>(tensor, name, shape);
    };
    for (size_t l = 0; l < layers.size(); l++) {
        list[l].weight = take("weight", {layers[l].out, layers[l].in});
        list[l].bias = take("bias", {layers[l].out});
        if (learned[l]) list[l].slope = take("slope", {1});
    }
    if (next != tensors.size()) throw std::invalid_argument("parameters: more than the layers have");
    return list;
}

}  // namespace gwf
