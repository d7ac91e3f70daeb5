// The arguments of a call that goes the short way (direct.h), and what is known of it.
#pragma once
#include <array>
#include <memory>
#include <string>

#include "bindings/tensors.h"
#include "pairwise/pairwise.h"

namespace gwf::direct {

// ------------------------------------------------------------------------------------------------ arguments

// Names of arguments; those in front may be given by place.
enum Name { x_, y_, third_, fourth_, kernel_, exclude_self_, backend_, method_, x_lengths_, y_lengths_, n_names };

// A call's arguments by name; null where not given.
using Arguments = std::array<PyObject*, n_names>;

// What a function of Python takes, and where its values go.
struct Parameter {
    const char* name;
    Name place;
    PyObject* interned = nullptr;
};

struct Signature {
    int positional;
    std::vector<Parameter> parameters;  // those by place first

    // Whether these are arguments that it knows, each once.
    bool bind(PyObject* const* args, Py_ssize_t count, PyObject* names, Arguments& out) const {
        if (count > positional) return false;
        for (Py_ssize_t i = 0; i < count; i++) out[size_t(parameters[size_t(i)].place)] = args[i];
        const Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
        for (Py_ssize_t i = 0; i < named; i++) {
            const Parameter* parameter = find(PyTuple_GET_ITEM(names, i));
            if (!parameter || out[size_t(parameter->place)]) return false;
            out[size_t(parameter->place)] = args[count + i];
        }
        return out[x_] && out[y_];
    }

  private:
    const Parameter* find(PyObject* name) const {
        for (const Parameter& parameter : parameters)
            if (parameter.interned == name) return &parameter;  // what stands in source code is interned
        for (const Parameter& parameter : parameters)
            if (PyUnicode_CompareWithASCIIString(name, parameter.name) == 0) return &parameter;
        return nullptr;
    }
};

inline bool is_absent(PyObject* value) { return !value || value == Py_None; }

inline bool says(PyObject* value, const char* expected) {
    return PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, expected) == 0;
}

// Whether a flag, false where not given, is one; its value.
inline bool read_flag(PyObject* value, bool& flag) {
    flag = value == Py_True;
    return !value || value == Py_False || flag;
}

// ------------------------------------------------------------------------------------------------ kernels

struct Known {
    Owned spec;
    std::vector<Term> terms;
    bool positive = false;
};
// Kept by those who use it: another thread may put a new one in its place.
using Kernel = std::shared_ptr<const Known>;

// Where the kernel of a spec is kept, or another.
inline Kernel& slot_of(PyObject* spec) {
    constexpr size_t places = 64;
    static Kernel* const known = new Kernel[places];  // never freed: Python is gone before static objects are
    return known[(reinterpret_cast<uintptr_t>(spec) >> 4) % places];
}
inline bool is_of(const Kernel& kernel, PyObject* spec) { return kernel && kernel->spec.get() == spec; }

inline bool is_true(PyObject* object, const char* attribute) {
    return Owned(checked(PyObject_GetAttrString(object, attribute))).get() == Py_True;
}

// A kernel that the compiled backend evaluates; null where it is none, such as one with a tensor as bandwidth.
inline Kernel known_kernel(PyObject* kernel) {
    static PyObject* const name = PyUnicode_InternFromString("spec");
    Owned spec(kernel ? PyObject_GetAttr(kernel, name) : nullptr);
    if (!spec || !PyTuple_CheckExact(spec.get())) {
        PyErr_Clear();
        return nullptr;
    }
    Kernel& slot = slot_of(spec.get());
    if (is_of(slot, spec.get())) return slot;
    if (is_true(kernel, "has_formula")) return nullptr;
    auto known = std::make_shared<Known>();
    const Py_ssize_t count = PyTuple_GET_SIZE(spec.get());
    for (Py_ssize_t i = 0; i + 3 < count; i += 4) {
        double value[4];
        for (int k = 0; k < 4; k++) value[k] = PyFloat_AsDouble(PyTuple_GET_ITEM(spec.get(), i + k));
        if (PyErr_Occurred()) throw Raised();
        known->terms.push_back({int(value[0]), value[1], value[2], value[3]});
    }
    if (known->terms.empty()) return nullptr;
    known->positive = is_true(kernel, "positive");
    known->spec = std::move(spec);
    return slot = std::move(known);
}

// ------------------------------------------------------------------------------------------------ functions

// A function of Python and what its long way would choose: asked once for each type.
struct Function {
    Signature signature;
    Reduction reduction;
    PyObject *apply, *serves;  // with a graph; whether the compiled backend serves float32 or, True, float64
    int served[2] = {-1, -1};

    bool is_served(bool is_double) {
        int& answer = served[is_double];
        if (answer < 0) {
            const Owned found(checked(PyObject_CallOneArg(serves, is_double ? Py_True : Py_False)));
            answer = found.get() == Py_True;
        }
        return answer;
    }
};

// Points x [B?, N, D] and y [B?, M, D] of one kind.
struct Pair {
    View x, y;
    int64_t batch, n, m, dim;

    bool look(PyObject* first, PyObject* second) {
        if (!x.look(first) || !y.look(second) || x.dims < 2 || x.dims > 3 || y.dims != x.dims) return false;
        if (x.is_double != y.is_double || (x.dims == 3 && x.size(0) != y.size(0)) || x.size(-1) != y.size(-1))
            return false;
        batch = x.dims == 3 ? x.size(0) : 1;
        n = x.size(-2), m = y.size(-2), dim = x.size(-1);
        if (x.tensor == y.tensor && !x.is_contiguous()) return false;  // a copy of each would make them two sets
        return dim > 0 && Ordered::takes(x) && Ordered::takes(y);
    }
    Pair swapped() const { return {y, x, batch, m, n, dim}; }

    // A result with numbers, or with so many channels, a row.
    Made per_row(int64_t channels = 0) const {
        const int64_t sizes[] = {x.sizes[0], x.sizes[1], channels}, single[] = {x.sizes[0], channels};
        return x.dims == 3 ? Made(x, sizes, channels ? 3 : 2) : Made(x, single, channels ? 2 : 1);
    }
};

// A companion of y, [B?, M], or its absence.
inline bool look_companion(PyObject* value, const Pair& pair, View& out) {
    return is_absent(value) || (out.look(value) && out.goes_with(pair.y, 0) && Ordered::takes(out));
}

// The instruction set in use.
const PairwiseBackend* active();

template <class T> auto runner() {
    if constexpr (sizeof(T) == 8) return active()->run_double;
    if constexpr (sizeof(T) == 4) return active()->run_float;
}

struct Sides {
    View b, beta;  // of the columns; or not
    bool exclude_self = false;
    int64_t channels = 1;
};

template <class T>
void reduce(Reduction reduction, const Known& kernel, const Pair& pair, const Sides& sides, Ordered& ordered, void* out,
            void* out2 = nullptr) {
    PairwiseCall<T> call{};
    call.reduction = reduction;
    call.kernel = kernel.terms;
    call.batch = pair.batch, call.rows = pair.n, call.columns = pair.m, call.dim = pair.dim;
    call.channels = sides.channels;
    call.x = ordered.template operator()<T>(pair.x);
    call.y = ordered.template operator()<T>(pair.y);
    call.b = ordered.template operator()<T>(sides.b);
    call.column_shift = ordered.template operator()<T>(sides.beta);
    call.exclude_self = sides.exclude_self;
    call.out = static_cast<T*>(out), call.out2 = static_cast<T*>(out2);
    const auto run = runner<T>();
    const Unlocked unlocked;
    run(call);
}

// The same in the type of the points.
template <class... Rest> void reduce_any(Reduction reduction, const Known& kernel, const Pair& pair, Rest&&... rest) {
    pair.x.is_double ? reduce<double>(reduction, kernel, pair, rest...)
                     : reduce<float>(reduction, kernel, pair, rest...);
}

inline Owned packed(std::initializer_list<PyObject*> values) {
    Owned tuple(checked(PyTuple_New(Py_ssize_t(values.size()))));
    Py_ssize_t i = 0;
    for (PyObject* value : values) PyTuple_SET_ITEM(tuple.get(), i++, Py_NewRef(value));
    return tuple;
}

inline PyObject* or_none(PyObject* value) { return value ? value : Py_None; }

// Functions that are no reductions (direct_measures.cpp), and a pass of theirs backwards.
Owned mmd_function(Function& function, const Arguments& given);
Owned svgd_function(Function& function, const Arguments& given);
Owned score_function(Function& function, const Arguments& given);
Owned scaled(PyObject* const* args, Py_ssize_t count);

}  // namespace gwf::direct
