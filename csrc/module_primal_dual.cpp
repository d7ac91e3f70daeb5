// gwf_fast._cpu.PrimalDual: the fused inner loop, for kernels/primal_dual_cpp.py, which knows tensors.
#include "module_primal_dual.h"

#include <pybind11/stl.h>

#include <chrono>
#include <cstring>

#include "bindings/primal_dual_problem.h"
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

template <class T> PrimalDualProblem<T> problem(const py::dict& from) {
    PrimalDualProblem<T> made = primal_dual_problem<T>(from);
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
