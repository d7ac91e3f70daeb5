// gwf_fast._cpu.PrimalDual: the fused inner loop, for kernels/cpp/primal_dual.py.
#include "bindings/primal_dual.h"

#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>

#include "bindings/interruption.h"
#include "bindings/primal_dual_problem.h"

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

template <class T> PrimalDualProblem<T> problem(Crossing& crossing, const py::dict& from) {
    PrimalDualProblem<T> made = primal_dual_problem<T>(crossing, from);
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
    explicit Loop(const py::dict& from) {
        const bool is_double = Crossing().leading(from["inputs"], "inputs", 2, 2).is_double();
        if (is_double)
            loop_ = make(problem<double>(crossing_, from), backend().make_double);
        else
            loop_ = make(problem<float>(crossing_, from), backend().make_float);
    }

    py::dict run(int64_t first, int64_t count, int threads) {
        if (first < 0 || count < 0 || first + count > iterations_)
            throw std::invalid_argument("iterations: more than the schedule has");
        PrimalDualReport report;
        {
            const py::gil_scoped_release release;
            report = loop_->run(first, count, threads);
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
    template <class Problem, class Make> std::unique_ptr<PrimalDual> make(const Problem& problem, Make made) {
        iterations_ = problem.iterations;
        return made(problem);
    }

    Crossing crossing_;  // what it copied must outlive the loop
    int64_t iterations_ = 0;
    std::unique_ptr<PrimalDual> loop_;
};

}  // namespace

void bind_primal_dual(py::module_& m, const char* (*instruction_set)()) {
    active_set = instruction_set;
    py::class_<Loop>(m, "PrimalDual", "The inner loop of a JKO step; tensors must live as long.")
        .def(py::init<const py::dict&>(), py::arg("problem"))
        .def("run", &Loop::run, py::arg("first"), py::arg("count"), py::arg("threads"))
        .def("write_back", &Loop::write_back);
    m.def(
        "philox_indices",
        [](uint64_t seed, uint32_t iteration, uint32_t stream, int64_t bound, py::handle out) {
            const int64_t count = Crossing::look(out, "out").count();
            if (bound < 1) throw std::invalid_argument("bound: at least 1");
            auto* to = Crossing().write<int64_t>(out, "out", {count});
            backend().indices(seed, iteration, stream, count, bound, to);
        },
        py::arg("seed"), py::arg("iteration"), py::arg("stream"), py::arg("bound"), py::arg("out"));
    m.def(
        "philox_uniforms",
        [](uint64_t seed, uint32_t iteration, uint32_t stream, py::handle out) {
            const int64_t count = Crossing::look(out, "out").count();
            backend().uniforms(seed, iteration, stream, count, Crossing().write<double>(out, "out", {count}));
        },
        py::arg("seed"), py::arg("iteration"), py::arg("stream"), py::arg("out"));
    m.def(
        "philox_normals",
        [](uint64_t seed, uint32_t iteration, uint32_t stream, py::handle out) {
            Crossing crossing;
            const Array to = crossing.leading(out, "out", 2, 2);
            const Shape shape{to.size(0), to.size(1)};
            if (to.is_double())
                backend().normals_double(seed, iteration, stream, to.count(),
                                         crossing.write<double>(out, "out", shape));
            else
                backend().normals_float(seed, iteration, stream, to.count(), crossing.write<float>(out, "out", shape));
        },
        py::arg("seed"), py::arg("iteration"), py::arg("stream"), py::arg("out"));
}

}  // namespace gwf
