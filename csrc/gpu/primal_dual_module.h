// The class PrimalDual of gwf_fast._cuda, for kernels/cuda/primal_dual.py, which knows tensors. In a header, so that a
// test without a GPU binds the same to an emulation of the kernel.
#pragma once
#include <cmath>
#include <stdexcept>
#include <string>

#include "bindings/primal_dual_problem.h"
#include "gpu/pairwise.h"
#include "gpu/primal_dual.h"

namespace gwf::gpu {

// Where the kernel works: addresses on the device.
struct LoopWorkspace {
    std::uintptr_t numbers, rows, losses, norms, arrivals, failure, stream;
};

template <class T> LoopSizes sizes_of(const PrimalDualProblem<T>& p) {
    LoopSizes sizes{};
    sizes.input_dim = int(p.input_dim);
    sizes.dim = int(p.dim);
    sizes.batch = p.batch;
    sizes.target_batch = p.target_batch;
    sizes.penalty = p.penalty > 0;
    sizes.whitening = p.mean != nullptr;
    sizes.log_mean = p.log_mean;
    sizes.normal_targets = p.target_kind == TargetKind::normal;
    sizes.averages = p.adam.average > 0;
    sizes.density = density_kind(p.density.kind);
    sizes.map = p.map.layers;
    sizes.critic = p.critic.layers;
    for (const auto& layer : p.map.parameters) sizes.map_learned.push_back(layer.slope != nullptr);
    for (const auto& layer : p.critic.parameters) sizes.critic_learned.push_back(layer.slope != nullptr);
    sizes.map_residual = p.map.residual;
    return sizes;
}

template <class T> class DeviceLoop {
  public:
    DeviceLoop(const PrimalDualProblem<T>& problem, int blocks, int threads) : p_(problem) {
        LoopDevice device{};
        const int code = loop_device(device);
        if (code != 0) throw std::runtime_error("gwf_fast._cuda: " + std::string(error_text(code)));
        device.blocks = blocks;
        if (threads > 0) device.threads = threads;
        plan_ = plan_loop(sizes_of(p_), int(sizeof(T)), device);
        if (!plan_.refusal.empty()) throw std::runtime_error("gwf_fast._cuda: " + plan_.refusal);
    }

    const LoopPlan& plan() const { return plan_; }

    void run(std::int64_t first, std::int64_t count, const LoopWorkspace& at) {
        LoopArguments<T> a{p_};
        a.layout = plan_.layout;
        a.input_dim = int(p_.input_dim);
        a.dim = int(p_.dim);
        a.pool_size = p_.pool_size;
        a.target_size = p_.target_size;
        a.whole_pool = p_.whole_pool;
        a.of_model = p_.of_model;
        a.of_target = p_.of_target;
        a.density = loop_density(p_.density, p_.dim);
        a.inputs = p_.inputs;
        a.anchors = p_.anchors;
        a.target = p_.target;
        a.map_rate = p_.map.rate;
        a.critic_rate = p_.critic.rate;
        powers(p_.map.steps, a.map_powers);
        powers(p_.critic.steps, a.critic_powers);
        a.first = first;
        a.count = count;
        a.numbers = reinterpret_cast<T*>(at.numbers);
        a.rows = reinterpret_cast<std::int64_t*>(at.rows);
        a.losses = reinterpret_cast<double*>(at.losses);
        a.norms = reinterpret_cast<double*>(at.norms);
        a.schedule = p_.schedule;
        a.arrivals = reinterpret_cast<unsigned long long*>(at.arrivals);
        a.failure = reinterpret_cast<int*>(at.failure);
        int code;
        if constexpr (sizeof(T) == 4)
            code = run_loop_float(a, plan_.shared_bytes, reinterpret_cast<void*>(at.stream));
        else
            code = run_loop_double(a, plan_.shared_bytes, reinterpret_cast<void*>(at.stream));
        if (code != 0) throw std::runtime_error("gwf_fast._cuda.PrimalDual: " + std::string(error_text(code)));
        p_.map.steps += count * p_.map_steps;
        p_.critic.steps += count * p_.critic_steps;
    }

  private:
    void powers(std::int64_t steps, double (&to)[2]) const {
        to[0] = std::pow(p_.adam.beta1, double(steps));
        to[1] = std::pow(p_.adam.beta2, double(steps));
    }

    PrimalDualProblem<T> p_;
    LoopPlan plan_;
};

// (outputs, inputs, numbers from output to output, offset, offset of the slope or -1) of each layer.
inline py::dict network_layout(const LoopNetwork& net) {
    py::list layers;
    for (int l = 0; l < net.depth; l++) {
        const auto& layer = net.layer[l];
        layers.append(py::make_tuple(layer.out, layer.in, layer.in_stride, layer.weight, layer.slope));
    }
    py::dict made;
    made["layers"] = layers;
    made["size"] = net.size;
    made["values"] = net.values;
    made["first_moments"] = net.first;
    made["second_moments"] = net.second;
    made["average"] = net.average;
    return made;
}

inline py::dict plan_layout(const LoopPlan& plan) {
    py::dict made;
    made["blocks"] = plan.layout.blocks;
    made["cluster"] = plan.layout.cluster;
    made["threads"] = plan.layout.sharing.threads;
    made["per_lane"] = plan.layout.sharing.per_lane;
    made["everywhere"] = plan.layout.moments >= 0;
    made["rows"] = py::make_tuple(plan.layout.map.rows, plan.layout.critic.rows);
    made["resident"] = plan.layout.map.resident >= 0;
    made["shared_bytes"] = plan.shared_bytes;
    made["numbers"] = plan.numbers;
    made["map"] = network_layout(plan.layout.map);
    made["critic"] = network_layout(plan.layout.critic);
    made["whitening"] = plan.layout.whitening.at;
    made["density"] = plan.layout.density.at;
    return made;
}

class AnyLoop {
  public:
    AnyLoop(bool is_double, const py::dict& from, int blocks, int threads) {
        if (is_double)
            wide_ = std::make_unique<DeviceLoop<double>>(primal_dual_problem<double>(crossing_, from), blocks, threads);
        else
            narrow_ = std::make_unique<DeviceLoop<float>>(primal_dual_problem<float>(crossing_, from), blocks, threads);
    }
    py::dict layout() const { return plan_layout(wide_ ? wide_->plan() : narrow_->plan()); }
    void run(std::int64_t first, std::int64_t count, const std::vector<std::uintptr_t>& workspace) {
        const LoopWorkspace at{workspace.at(0), workspace.at(1), workspace.at(2), workspace.at(3),
                               workspace.at(4), workspace.at(5), workspace.at(6)};
        const py::gil_scoped_release release;
        wide_ ? wide_->run(first, count, at) : narrow_->run(first, count, at);
    }

  private:
    Crossing crossing_{true};  // on the device; what it copied must outlive the loop
    std::unique_ptr<DeviceLoop<float>> narrow_;
    std::unique_ptr<DeviceLoop<double>> wide_;
};

// Why networks of these widths don't fit the current device, with all that may lie beside them; empty where they do.
inline std::string loop_refusal(bool is_double, std::int64_t rows, const std::vector<std::int64_t>& map,
                                const std::vector<std::int64_t>& critic, bool penalty, const std::string& density) {
    LoopDevice device{};
    const int code = loop_device(device);
    if (code != 0) return error_text(code);
    LoopSizes sizes{};
    sizes.input_dim = int(map.front());
    sizes.dim = int(map.back());
    sizes.batch = sizes.target_batch = rows;
    sizes.penalty = penalty;
    sizes.whitening = true;
    sizes.density = density_kind(density);
    for (const auto& [widths, layers] : {std::pair{&map, &sizes.map}, {&critic, &sizes.critic}})
        for (std::size_t l = 0; l + 1 < widths->size(); l++)
            layers->push_back({(*widths)[l], (*widths)[l + 1], Function::leaky, 0});
    sizes.map_learned.assign(sizes.map.size(), true);
    sizes.critic_learned.assign(sizes.critic.size(), true);
    return plan_loop(sizes, is_double ? 8 : 4, device).refusal;
}

inline void bind_primal_dual(py::module_& module) {
    py::class_<AnyLoop>(module, "PrimalDual", "The inner loop of a JKO step in one kernel; see csrc/gpu/primal_dual.h.")
        .def(py::init<bool, const py::dict&, int, int>(), py::arg("is_double"), py::arg("problem"), py::arg("blocks"),
             py::arg("threads"))
        .def("layout", &AnyLoop::layout)
        .def("run", &AnyLoop::run, py::arg("first"), py::arg("count"), py::arg("workspace"));
    module.def("primal_dual_refusal", &loop_refusal, py::arg("is_double"), py::arg("rows"), py::arg("map"),
               py::arg("critic"), py::arg("penalty"), py::arg("density"),
               "Why networks of these widths don't fit; empty where they do.");
}

}  // namespace gwf::gpu
