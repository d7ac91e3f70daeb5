// gwf_fast._cpu.PrimalDual: the fused inner loop, for kernels/primal_dual_cpp.py, which knows tensors.
#include "module_primal_dual.h"

#include <pybind11/stl.h>

#include <chrono>
#include <cstring>

#include "primal_dual.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace py = pybind11;

namespace gwf {
namespace {

const char* (*active_set)() = nullptr;

const PrimalDualBackend& backend() {
#if defined(__x86_64__)
    for (const PrimalDualBackend* candidate : {&primal_dual_avx512, &primal_dual_avx2})
        if (std::strcmp(active_set(), candidate->name) == 0) return *candidate;
#endif
    return primal_dual_baseline;
}

// While it lives, results too small for a normal number are what IEEE 754 says, as the caller's code expects.
class GradualUnderflow {
  public:
#if defined(__x86_64__)
    GradualUnderflow() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~0x8040u); }
    ~GradualUnderflow() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#else
    GradualUnderflow() {}
#endif
  public:
    GradualUnderflow(const GradualUnderflow&) = delete;
    GradualUnderflow& operator=(const GradualUnderflow&) = delete;
};

template <class T> T* pointer(const py::handle& address) { return reinterpret_cast<T*>(address.cast<uintptr_t>()); }

Elementwise elementwise(const py::handle& pair) {
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

template <class T> PrimalDualProblem<T> problem(const py::dict& from) {
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
    // The loop runs without the interpreter's lock. What these hold is dropped with the loop, under the lock.
    if (const py::object draw = from["begin"]; !draw.is_none())
        made.begin = [draw](int64_t iteration, T* z) {
            const py::gil_scoped_acquire lock;
            const GradualUnderflow python;
            draw(iteration, reinterpret_cast<uintptr_t>(z));
        };
    if (const py::object ask = from["rest"]; !ask.is_none())
        made.rest = [ask](const T* y, T* gradient) {
            const py::gil_scoped_acquire lock;
            const GradualUnderflow python;
            return ask(reinterpret_cast<uintptr_t>(y), reinterpret_cast<uintptr_t>(gradient)).template cast<double>();
        };
    return made;
}

class Loop {
  public:
    Loop(bool is_double, const py::dict& from)
        : loop_(is_double ? backend().make_double(problem<double>(from)) : backend().make_float(problem<float>(from))) {
    }

    py::dict run(int64_t first, int64_t count, int threads) {
        using Clock = std::chrono::steady_clock;
        constexpr std::chrono::milliseconds between_signals{50};
        auto asked = Clock::now();
        auto interrupted = [&] {
            if (Clock::now() - asked < between_signals) return false;
            asked = Clock::now();
            const py::gil_scoped_acquire lock;
            const GradualUnderflow python;
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
            return false;
        };
        PrimalDualReport report;
        {
            const py::gil_scoped_release release;
            report = loop_->run(first, count, threads, interrupted);
        }
        py::dict result;
        result["iterations"] = report.iterations;
        result["map_loss"] = report.map_loss;
        result["critic_loss"] = report.critic_loss;
        result["mean_map_loss"] = report.mean_map_loss;
        return result;
    }

    void write_back() { loop_->write_back(); }

  private:
    std::unique_ptr<PrimalDual> loop_;
};

}  // namespace

void bind_primal_dual(py::module_& m, const char* (*instruction_set)()) {
    active_set = instruction_set;
    py::class_<Loop>(m, "PrimalDual", "The inner loop of a JKO step; arrays are given by address, in PyTorch's layout.")
        .def(py::init<bool, const py::dict&>(), py::arg("is_double"), py::arg("problem"))
        .def("run", &Loop::run, py::arg("first"), py::arg("count"), py::arg("threads"))
        .def("write_back", &Loop::write_back);
    m.def(
        "philox_indices",
        [](uint64_t seed, uint32_t iteration, uint32_t stream, int64_t count, int64_t bound, uintptr_t out) {
            backend().indices(seed, iteration, stream, count, bound, reinterpret_cast<int64_t*>(out));
        },
        py::arg("seed"), py::arg("iteration"), py::arg("stream"), py::arg("count"), py::arg("bound"), py::arg("out"));
    m.def(
        "philox_uniforms",
        [](uint64_t seed, uint32_t iteration, uint32_t stream, int64_t count, uintptr_t out) {
            backend().uniforms(seed, iteration, stream, count, reinterpret_cast<double*>(out));
        },
        py::arg("seed"), py::arg("iteration"), py::arg("stream"), py::arg("count"), py::arg("out"));
    m.def(
        "philox_normals",
        [](bool is_double, uint64_t seed, uint32_t iteration, uint32_t stream, int64_t count, uintptr_t out) {
            if (is_double)
                backend().normals_double(seed, iteration, stream, count, reinterpret_cast<double*>(out));
            else
                backend().normals_float(seed, iteration, stream, count, reinterpret_cast<float*>(out));
        },
        py::arg("is_double"), py::arg("seed"), py::arg("iteration"), py::arg("stream"), py::arg("count"),
        py::arg("out"));
}

}  // namespace gwf
