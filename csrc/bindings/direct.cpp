// Calls as people usually make them – plain tensors on the CPU, a kernel of numbers, the exact method – in one
// crossing: what Python takes microseconds for is looked at here, and the result comes back with its graph, if it has
// one. Where anything else is given, right or wrong, the answer is None, and Python goes the long way.
#include "bindings/direct.h"

#include "bindings/direct_call.h"

namespace gwf {

namespace {
const PairwiseBackend* (*active_backend)() = nullptr;
}
const PairwiseBackend* direct::active() { return active_backend(); }

namespace {

using namespace direct;

bool enabled = true;

Owned kernel_function(Function& function, const Arguments& given) {
    Pair pair;
    Sides sides;
    const bool average = function.reduction == Reduction::average;
    if (!pair.look(given[x_], given[y_]) || !read_flag(given[exclude_self_], sides.exclude_self)) return none();
    if (sides.exclude_self && pair.n != pair.m) return none();
    if (average && pair.m <= int64_t(sides.exclude_self)) return none();
    const bool logarithm = average || function.reduction == Reduction::logsumexp;
    View& third = logarithm && !average ? sides.beta : sides.b;
    const bool has_third = !is_absent(given[third_]);
    if (has_third && !third.look(given[third_])) return none();
    const bool channels = average || (function.reduction == Reduction::sum && third.dims == pair.y.dims);
    if (has_third && !(third.goes_with(pair.y, channels) && Ordered::takes(third))) return none();
    if (average && !look_companion(given[fourth_], pair, sides.beta)) return none();
    if (channels) sides.channels = third.tensor ? third.size(-1) : pair.dim;
    const Kernel kernel = known_kernel(given[kernel_]);
    if (!kernel || (logarithm && !kernel->positive) || !function.is_served(pair.x.is_double)) return none();

    const bool needs = pair.x.needs_grad || pair.y.needs_grad || sides.b.needs_grad || sides.beta.needs_grad;
    const bool graph = needs && Torch::get().grows_graphs();
    const bool own = given[x_] == given[y_] && pair.x.needs_grad && !sides.exclude_self && !logarithm;
    if (sides.channels == 0 || (graph && (average || own))) return none();
    Ordered ordered;
    Made out2, out = function.reduction == Reduction::gradient ? pair.per_row(pair.dim)
                     : channels                                ? pair.per_row(sides.channels)
                                                               : pair.per_row();
    if (average) out2 = pair.per_row();
    reduce_any(function.reduction, *kernel, pair, sides, ordered, out.data, out2.data);
    if (!graph) return out.object();
    const Owned rest = packed({kernel->spec.get(), sides.exclude_self ? Py_True : Py_False});
    const Owned made = packed({out.tensor.get(), rest.get()});
    PyObject* const arguments[] = {given[x_], given[y_], or_none(given[third_]), made.get()};
    return Owned(checked(PyObject_Vectorcall(function.apply, arguments, 4, nullptr)));
}

// ------------------------------------------------------------------------------------------------ backward passes

template <class T> void multiply_rows(void* values, int64_t rows, int64_t width, const T* by) {
    T* value = static_cast<T*>(values);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t d = 0; d < width; d++) *value++ *= by[i];
}

// Gradients of <u, sum_j b_j k_ij> in x, y and b, each where it is needed.
template <class T>
Owned sum_gradients(const Known& kernel, const Pair& pair, const View& b, const View& u, bool exclude_self,
                    const std::array<bool, 3>& needs) {
    Ordered ordered;
    Made gx, gy, gb;
    if (needs[0]) {
        gx = pair.per_row(pair.dim);
        reduce<T>(Reduction::gradient, kernel, pair, {b, {}, exclude_self}, ordered, gx.data);
        multiply_rows(gx.data, pair.batch * pair.n, pair.dim, ordered.operator()<T>(u));
    }
    const Pair columns = pair.swapped();
    const Sides sides{u, {}, exclude_self};
    if (needs[1]) gy = columns.per_row(pair.dim);
    if (needs[2]) gb = columns.per_row();
    if (needs[1] && needs[2])
        reduce<T>(Reduction::sum_gradient, kernel, columns, sides, ordered, gb.data, gy.data);
    else if (needs[1])
        reduce<T>(Reduction::gradient, kernel, columns, sides, ordered, gy.data);
    else if (needs[2])
        reduce<T>(Reduction::sum, kernel, columns, sides, ordered, gb.data);
    if (needs[1] && b.tensor) multiply_rows(gy.data, pair.batch * pair.m, pair.dim, ordered.operator()<T>(b));
    return packed({or_none(gx.tensor.get()), or_none(gy.tensor.get()), or_none(gb.tensor.get())});
}

// sum_vjp(x, y, b, u, spec, exclude_self, needs): a tuple, or None.
Owned sum_vjp(PyObject* const* args) {
    Pair pair;
    View b, u;
    bool exclude_self = false;
    if (!pair.look(args[0], args[1]) || !look_companion(args[2], pair, b)) return none();
    if (!look_companion(args[3], pair.swapped(), u) || !read_flag(args[5], exclude_self)) return none();
    const Kernel kernel = slot_of(args[4]);
    if (!is_of(kernel, args[4]) || !u.tensor || !PyTuple_Check(args[6])) return none();
    std::array<bool, 3> needs;
    for (size_t i = 0; i < 3; i++) needs[i] = PyTuple_GET_ITEM(args[6], i) == Py_True;
    return (pair.x.is_double ? sum_gradients<double> : sum_gradients<float>)(*kernel, pair, b, u, exclude_self, needs);
}

// ------------------------------------------------------------------------------------------------ module

// What C++ throws becomes what Python raises.
template <class F> PyObject* guarded(F&& f) {
    try {
        return f().release();
    } catch (const Raised&) {
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

Function& function_of(PyObject* self) { return *static_cast<Function*>(PyCapsule_GetPointer(self, nullptr)); }

template <Owned (*serve)(Function&, const Arguments&)>
PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded([&] {
        Function& function = function_of(self);
        Arguments given{};
        if (!enabled || !function.signature.bind(args, count, names, given)) return none();
        if (!is_absent(given[backend_]) && !says(given[backend_], "cpp")) return none();
        if (given[method_] && !says(given[method_], "exact")) return none();
        if (!is_absent(given[x_lengths_]) || !is_absent(given[y_lengths_]) || !Torch::get().is_plain()) return none();
        return serve(function, given);
    });
}

PyObject* call_sum_vjp(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return guarded([&] { return !enabled || count != 7 || !Torch::get().is_plain() ? none() : sum_vjp(args); });
}

PyObject* call_scaled(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return guarded([&] { return !enabled || count < 1 || !Torch::get().is_plain() ? none() : scaled(args, count); });
}

PyCFunction as_function(PyObject* (*f)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}
PyCFunction as_function(PyObject* (*f)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

PyMethodDef kernel_call = {"direct", as_function(call<kernel_function>), METH_FASTCALL | METH_KEYWORDS, nullptr};
PyMethodDef mmd_call = {"direct", as_function(call<mmd_function>), METH_FASTCALL | METH_KEYWORDS, nullptr};
PyMethodDef svgd_call = {"direct", as_function(call<svgd_function>), METH_FASTCALL | METH_KEYWORDS, nullptr};
PyMethodDef score_call = {"direct", as_function(call<score_function>), METH_FASTCALL | METH_KEYWORDS, nullptr};
PyMethodDef passes[] = {
    {"sum_vjp", as_function(call_sum_vjp), METH_FASTCALL,
     "Gradients (x, y, b) of a sum over pairs, each where needed; None where the long way is to be gone."},
    {"scaled", as_function(call_scaled), METH_FASTCALL,
     "Tensors times a number, or one of each in the batch; None where the long way is to be gone."},
    {nullptr, nullptr, 0, nullptr}};

struct Entry {
    const char* name;
    Reduction reduction;
    PyMethodDef* definition;
    Signature signature;
};

const std::vector<Entry>& entries() {
    const Parameter x{"x", x_}, y{"y", y_}, kernel{"kernel", kernel_}, alone{"exclude_self", exclude_self_},
        backend{"backend", backend_}, method{"method", method_}, rows{"x_lengths", x_lengths_},
        columns{"y_lengths", y_lengths_}, weights{"weights", third_}, logs{"log_weights", third_};
    static const std::vector<Entry> found = {
        {"kernel_sum",
         Reduction::sum,
         &kernel_call,
         {3, {x, y, weights, kernel, method, alone, rows, columns, backend}}},
        {"kernel_gradient",
         Reduction::gradient,
         &kernel_call,
         {3, {x, y, weights, kernel, method, alone, rows, columns, backend}}},
        {"kernel_logsumexp",
         Reduction::logsumexp,
         &kernel_call,
         {3, {x, y, logs, kernel, alone, rows, columns, backend}}},
        {"kernel_average",
         Reduction::average,
         &kernel_call,
         {4, {x, y, {"values", third_}, {"log_weights", fourth_}, kernel, alone, rows, columns, backend}}},
        {"svgd_direction", Reduction::sum, &svgd_call, {2, {x, {"score", y_}, kernel, backend}}},
        {"parzen_score", Reduction::average, &score_call, {2, {x, y, kernel, alone, backend}}},
        {"mmd2",
         Reduction::sum,
         &mmd_call,
         {2, {x, y, kernel, {"unbiased", exclude_self_}, {"x_weights", third_}, {"y_weights", fourth_}, backend}}},
    };
    return found;
}

py::object direct_function(const std::string& name, py::object apply, py::object serves) {
    for (const Entry& entry : entries()) {
        if (name != entry.name) continue;
        auto* function = new Function{entry.signature, entry.reduction, apply.release().ptr(), serves.release().ptr()};
        for (Parameter& parameter : function->signature.parameters)
            parameter.interned = PyUnicode_InternFromString(parameter.name);
        Torch::get();                                          // found now: later another thread may wait for it
        const py::capsule self(static_cast<void*>(function));  // both live as long as the process
        return py::reinterpret_steal<py::object>(PyCFunction_New(entry.definition, self.ptr()));
    }
    throw py::value_error("direct: no such function, " + name);
}

}  // namespace

void bind_direct(py::module_& m, const PairwiseBackend* (*instruction_set)()) {
    active_backend = instruction_set;
    if (PyModule_AddFunctions(m.ptr(), passes) != 0) throw py::error_already_set();
    m.def("direct_function", direct_function,
          "The short way of a function: its result, with apply(*tensors, made) as its graph, or None.", py::arg("name"),
          py::arg("apply"), py::arg("serves"));
    m.def(
        "use_direct", [](bool on) { return std::exchange(enabled, on); },
        "Whether calls take the short way; returns whether they did. For tests and benchmarks.", py::arg("on"));
}

}  // namespace gwf
