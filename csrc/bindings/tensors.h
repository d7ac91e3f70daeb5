// What the short way of a call (direct.cpp) asks of PyTorch: whether nothing but plain execution goes on, what a tensor
// is, and memory for a result. It never says what is wrong: where anything is unusual, Python looks closer, and says
// so.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include "bindings/crossing.h"

namespace gwf::direct {

// A reference of one's own.
class Owned {
  public:
    Owned() = default;
    explicit Owned(PyObject* object) : object_(object) {}
    Owned(Owned&& other) noexcept : object_(other.release()) {}
    Owned& operator=(Owned&& other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;
    ~Owned() { Py_XDECREF(object_); }
    PyObject* get() const { return object_; }
    PyObject* release() { return std::exchange(object_, nullptr); }
    explicit operator bool() const { return object_ != nullptr; }

  private:
    PyObject* object_ = nullptr;
};

inline Owned none() { return Owned(Py_NewRef(Py_None)); }

// Other Python threads run while this lives.
class Unlocked {
  public:
    Unlocked() : state_(PyEval_SaveThread()) {}
    ~Unlocked() { PyEval_RestoreThread(state_); }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

  private:
    PyThreadState* state_;
};

// Thrown where the Python error is set already.
struct Raised {};

inline PyObject* checked(PyObject* object) {
    if (!object) throw Raised();
    return object;
}

// PyTorch's functions, found once; as long as the process lives.
struct Torch {
    PyTypeObject *tensor, *parameter;
    PyObject *autocast, *transforms, *function_modes, *dispatch_modes, *grad_enabled, *forward_mode;
    PyObject *requires_grad, *new_empty, *current_level;  // names

    static const Torch& get() {
        static const Torch found;
        return found;
    }

    // As is_eager of gwf_fast/ops/modes.py and without autocast. Python has seen that torch.compile does not trace.
    bool is_plain() const {
        if (!dlpack::Tensors::get().describe) return false;
        PyObject* level = PyDict_GetItemWithError(forward_mode, current_level);
        return is(autocast, Py_False) && is(transforms, Py_False) && is_zero(function_modes) &&
               is_zero(dispatch_modes) && level && PyLong_AsLong(level) < 0;
    }
    bool grows_graphs() const { return is(grad_enabled, Py_True); }

  private:
    Torch() {
        const auto torch = pybind11::module_::import("torch"), c = pybind11::module_::import("torch._C");
        tensor = reinterpret_cast<PyTypeObject*>(kept(torch, "Tensor"));
        parameter = reinterpret_cast<PyTypeObject*>(kept(torch.attr("nn"), "Parameter"));
        autocast = kept(c, "_is_any_autocast_enabled");
        transforms = kept(c, "_are_functorch_transforms_active");
        function_modes = kept(c, "_len_torch_function_stack");
        dispatch_modes = kept(c, "_len_torch_dispatch_stack");
        grad_enabled = kept(torch, "is_grad_enabled");
        forward_mode = kept(pybind11::module_::import("torch.autograd.forward_ad"), "__dict__");
        requires_grad = PyUnicode_InternFromString("requires_grad");
        new_empty = PyUnicode_InternFromString("new_empty");
        current_level = PyUnicode_InternFromString("_current_level");
    }
    static PyObject* kept(const pybind11::object& owner, const char* name) {
        return pybind11::object(owner.attr(name)).release().ptr();
    }
    static bool is(PyObject* question, PyObject* answer) {
        return Owned(checked(PyObject_CallNoArgs(question))).get() == answer;
    }
    static bool is_zero(PyObject* question) {
        return PyLong_AsLong(Owned(checked(PyObject_CallNoArgs(question))).get()) == 0;
    }
};

// A plain tensor of floats or doubles on the CPU, by reference.
struct View {
    PyObject* tensor = nullptr;
    void* data = nullptr;
    int dims = 0;
    const int64_t *sizes = nullptr, *strides = nullptr;
    bool is_double = false, needs_grad = false;

    int64_t size(int i) const { return sizes[i < 0 ? dims + i : i]; }
    int64_t count() const {
        int64_t product = 1;
        for (int i = 0; i < dims; i++) product *= sizes[i];
        return product;
    }
    bool is_contiguous() const {
        int64_t expected = 1;
        for (int i = dims; i-- > 0; expected *= sizes[i])
            if (sizes[i] != 1 && strides[i] != expected) return count() == 0;
        return true;
    }
    // Whether it is [*batch of points, ...] as points [*B, M, D] are, with `more` dimensions behind those of `points`
    // but its last.
    bool goes_with(const View& points, int more) const {
        if (is_double != points.is_double || dims != points.dims - 1 + more) return false;
        return std::equal(sizes, sizes + points.dims - 1, points.sizes);
    }

    // Whether `object` is one; if so, what it is.
    bool look(PyObject* object) {
        const Torch& torch = Torch::get();
        const auto& tensors = dlpack::Tensors::get();
        if (Py_TYPE(object) != torch.tensor && Py_TYPE(object) != torch.parameter) return false;
        dlpack::DLTensor found;
        if (tensors.describe(object, &found) != 0) {
            PyErr_Clear();
            return false;
        }
        if (!(found.device == dlpack::cpu) || found.dtype.code != 2) return false;
        if ((found.dtype.bits != 32 && found.dtype.bits != 64) || dlpack::is_negated(object)) return false;
        if (!found.data && !is_empty(found)) return false;
        const Owned grad(checked(PyObject_GetAttr(object, torch.requires_grad)));
        tensor = object;
        data = static_cast<char*>(found.data) + found.byte_offset;
        dims = found.ndim, sizes = found.shape, strides = found.strides;
        is_double = found.dtype.bits == 64, needs_grad = grad.get() == Py_True;
        return true;
    }

  private:
    static bool is_empty(const dlpack::DLTensor& found) {
        return std::find(found.shape, found.shape + found.ndim, 0) != found.shape + found.ndim;
    }
};

// Points and numbers in order. Few that lie in another are copied: two calls of Python would take longer.
class Ordered {
  public:
    static constexpr int64_t few = 1 << 14;
    static bool takes(const View& view) { return view.is_contiguous() || (view.count() <= few && view.dims <= 4); }

    template <class T> const T* operator()(const View& view) {
        const auto* data = static_cast<const T*>(view.data);
        if (!view.tensor || view.is_contiguous()) return data;
        auto& copy = copies_.emplace_back(new char[size_t(view.count()) * sizeof(T)]);
        T* to = reinterpret_cast<T*>(copy.get());
        fill(view, data, 0, to);
        return reinterpret_cast<T*>(copy.get());
    }

  private:
    template <class T> static void fill(const View& view, const T* from, int dim, T*& to) {
        if (dim == view.dims) {
            *to++ = *from;
            return;
        }
        for (int64_t i = 0; i < view.sizes[dim]; i++) fill(view, from + i * view.strides[dim], dim + 1, to);
    }
    std::vector<std::unique_ptr<char[]>> copies_;
};

// A tensor to be written, of the kind of another and of no graph.
struct Made {
    Owned tensor;
    void* data = nullptr;

    Made() = default;
    Made(const View& like, std::initializer_list<int64_t> sizes) : Made(like, sizes.begin(), int(sizes.size())) {}
    Made(const View& like, const int64_t* sizes, int count) {
        const Torch& torch = Torch::get();
        Owned numbers[8];
        PyObject* arguments[9] = {like.tensor};
        for (int i = 0; i < count; i++) {
            numbers[i] = Owned(checked(PyLong_FromLongLong(sizes[i])));
            arguments[i + 1] = numbers[i].get();
        }
        if (!count) {  // no sizes at all are not among what it takes
            numbers[0] = Owned(checked(PyTuple_New(0)));
            arguments[1] = numbers[0].get();
        }
        tensor = Owned(
            checked(PyObject_VectorcallMethod(torch.new_empty, arguments, size_t(std::max(count, 1) + 1), nullptr)));
        dlpack::DLTensor found;
        if (dlpack::Tensors::get().describe(tensor.get(), &found) != 0) throw Raised();
        data = static_cast<char*>(found.data) + found.byte_offset;
    }
    template <class T> T* as() const { return static_cast<T*>(data); }
    Owned object() { return tensor ? std::move(tensor) : none(); }
};

}  // namespace gwf::direct
