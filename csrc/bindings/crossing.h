// Where tensors become pointers: the one place, and no address is used that was not looked at here. Type, device,
// layout and size are checked against what the call says it will read or write. Tensors are read through DLPack's
// structures, which are plain C and fixed: this file knows no torch.
#pragma once
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

namespace gwf {

namespace py = pybind11;

// Sizes of an array, few enough to stand on the stack.
class Shape {
  public:
    Shape() = default;
    Shape(std::initializer_list<int64_t> sizes) {
        for (int64_t size : sizes) add(size);
    }
    void add(int64_t size) { sizes_[count_++] = size; }
    Shape with(int64_t size) const {
        Shape longer = *this;
        longer.add(size);
        return longer;
    }
    int count() const { return count_; }
    int64_t operator[](int i) const { return sizes_[i]; }

  private:
    int count_ = 0;
    int64_t sizes_[5] = {};
};

namespace dlpack {

struct Device {
    int32_t type, id;
    bool operator==(const Device&) const = default;
};
// Of DLPack 1.x (dmlc/dlpack, include/dlpack/dlpack.h).
struct DLTensor {
    void* data;
    Device device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
struct DLPackExchangeAPI {
    struct {
        uint32_t major, minor;
    } version;
    void* previous;
    void *allocate, *to_managed, *from_managed;
    int (*describe)(void* object, DLTensor* out);
    void* stream;
};
inline constexpr Device cpu{1, 0};

// torch.Tensor, and its function that fills in a DLTensor (torch >= 2.10); without it attributes are read one by one.
struct Tensors {
    PyTypeObject* type;
    int (*describe)(void*, DLTensor*);
    PyObject* is_neg;

    static const Tensors& get() {
        static const Tensors found = find();
        return found;
    }

  private:
    static Tensors find() {
        py::object type = py::module_::import("torch").attr("Tensor");
        Tensors made{reinterpret_cast<PyTypeObject*>(type.ptr()), nullptr,
                     py::object(type.attr("is_neg")).release().ptr()};
        if (py::hasattr(type, "__dlpack_c_exchange_api__")) {
            const py::capsule capsule = type.attr("__dlpack_c_exchange_api__");
            const auto* api = capsule.get_pointer<DLPackExchangeAPI>();
            if (api->version.major == 1) made.describe = api->describe;
        }
        type.release();  // it lives as long as the process
        return made;
    }
};

inline std::string named(const Shape& shape) {
    std::string out = "[";
    for (int i = 0; i < shape.count(); i++) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + "]";
}

inline std::string described(py::handle tensor) {
    if (!py::hasattr(tensor, "dtype")) return py::str(py::type::handle_of(tensor));
    return py::str("{} {} {} on {}")
        .format(py::type::handle_of(tensor).attr("__name__"), tensor.attr("dtype"), py::list(tensor.attr("shape")),
                tensor.attr("device"));
}

// Whether what is in memory is minus the values: a view of a tensor times -1, of which DLPack says nothing.
inline bool is_negated(py::handle tensor) {
    PyObject* const arguments[] = {tensor.ptr()};
    const auto answer =
        py::reinterpret_steal<py::object>(PyObject_Vectorcall(Tensors::get().is_neg, arguments, 1, nullptr));
    if (!answer) throw py::error_already_set();
    return answer.ptr() == Py_True;
}

[[noreturn]] inline void refuse(py::handle tensor, const char* name, const std::string& expected) {
    throw py::type_error(std::string(name) + ": compiled kernels expect " + expected + ", got " + described(tensor));
}

}  // namespace dlpack

// A tensor as it is, by reference.
class Array {
  public:
    py::handle tensor;
    const char* name;
    void* data;
    int dims;
    uint8_t code, bits;  // of the type, as in DLPack
    dlpack::Device device;

    bool is_double() const { return bits == 64; }
    int64_t size(int i) const { return sizes()[i < 0 ? dims + i : i]; }
    int64_t count() const {
        int64_t product = 1;
        for (int i = 0; i < dims; i++) product *= sizes()[i];
        return product;
    }
    bool is_contiguous() const {
        const int64_t *size = sizes(), *stride = strides();
        int64_t expected = 1;
        for (int i = dims; i-- > 0; expected *= size[i])
            if (size[i] != 1 && stride[i] != expected) return count() == 0;
        return true;
    }

  private:
    friend class Crossing;
    static constexpr int most_dims = 8;
    const int64_t* sizes() const { return sizes_ ? sizes_ : own_.data(); }
    const int64_t* strides() const { return sizes_ ? strides_ : own_.data() + most_dims; }
    const int64_t *sizes_ = nullptr, *strides_ = nullptr;  // the tensor's
    std::array<int64_t, 2 * most_dims> own_;               // where it has none to be looked at
};

// The arrays of one call. What is read may lie in memory in any order: a copy lives as long as this does.
class Crossing {
  public:
    // All arrays lie on the CPU; with `anywhere` on the device of the leading one.
    explicit Crossing(bool anywhere = false) : anywhere_(anywhere) {}

    // A floating tensor that decides on the type of a call: float32 or float64, with `least` to `most` dimensions.
    Array leading(py::handle tensor, const char* name, int least, int most);

    template <class T> const T* read(py::handle tensor, const char* name, const Shape& shape) {
        return static_cast<const T*>(enter(tensor, name, type<T>(), shape, false));
    }
    template <class T> const T* read_if(py::handle tensor, const char* name, const Shape& shape) {
        return tensor.is_none() ? nullptr : read<T>(tensor, name, shape);
    }
    template <class T> T* write(py::handle tensor, const char* name, const Shape& shape) {
        return static_cast<T*>(enter(tensor, name, type<T>(), shape, true));
    }
    template <class T> T* write_if(py::handle tensor, const char* name, const Shape& shape) {
        return tensor.is_none() ? nullptr : write<T>(tensor, name, shape);
    }
    // Sizes or places, int64 [count], each in 0 .. most.
    const int64_t* integers_if(py::handle tensor, const char* name, int64_t count, int64_t most);

    // What a tensor is, whatever it is.
    static Array look(py::handle tensor, const char* name);

  private:
    struct Type {
        uint8_t code, bits;
    };
    template <class T> static constexpr Type type() {
        return {uint8_t(std::is_floating_point_v<T> ? 2 : 0), 8 * sizeof(T)};
    }
    static void read_attributes(py::handle tensor, Array& array);
    void* enter(py::handle tensor, const char* name, Type type, const Shape& shape, bool writes);

    std::string place() const { return device_ == dlpack::cpu ? "the CPU" : "the device of the others"; }

    bool anywhere_;
    dlpack::Device device_ = dlpack::cpu;
    std::vector<py::object> copies_;
};

// What DLPack's function tells, from the attributes.
inline void Crossing::read_attributes(py::handle tensor, Array& array) {
    const py::tuple sizes = tensor.attr("shape"), strides = tensor.attr("stride")();
    array.dims = int(sizes.size());
    for (int i = 0; i < std::min(array.dims, Array::most_dims); i++) {
        array.own_[size_t(i)] = sizes[size_t(i)].cast<int64_t>();
        array.own_[size_t(Array::most_dims + i)] = strides[size_t(i)].cast<int64_t>();
    }
    const py::object type = tensor.attr("dtype");
    const std::string kind = py::str(type);  // torch.float32
    array.code = kind.starts_with("torch.float") ? 2 : kind.starts_with("torch.int") ? 0 : 255;
    array.bits = uint8_t(8 * type.attr("itemsize").cast<int>());
    const py::object device = tensor.attr("device"), index = device.attr("index");
    const bool on_cpu = device.attr("type").cast<std::string>() == "cpu";
    array.device = on_cpu ? dlpack::cpu : dlpack::Device{2, index.is_none() ? 0 : index.cast<int32_t>()};
    array.data = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
}

inline Array Crossing::look(py::handle tensor, const char* name) {
    const auto& tensors = dlpack::Tensors::get();
    if (!PyObject_TypeCheck(tensor.ptr(), tensors.type)) dlpack::refuse(tensor, name, "a torch.Tensor");
    Array array;
    array.tensor = tensor;
    array.name = name;
    if (!tensors.describe) {
        read_attributes(tensor, array);
    } else {
        dlpack::DLTensor found;
        if (tensors.describe(tensor.ptr(), &found) != 0) {
            PyErr_Clear();  // sparse, meta, without storage: its words name none of the arguments
            dlpack::refuse(tensor, name, "a dense tensor with memory of its own");
        }
        array.data = static_cast<char*>(found.data) + found.byte_offset;
        array.dims = found.ndim;
        array.sizes_ = found.shape;
        array.strides_ = found.strides;
        array.code = found.dtype.code;
        array.bits = found.dtype.bits;
        array.device = found.device;
    }
    return array;
}

inline Array Crossing::leading(py::handle tensor, const char* name, int least, int most) {
    Array array = look(tensor, name);
    if (anywhere_) device_ = array.device;
    if (array.code != 2 || (array.bits != 32 && array.bits != 64) || array.device != device_ || array.dims < least ||
        array.dims > most)
        dlpack::refuse(tensor, name,
                       "float32 or float64 on " + place() + " with " + std::to_string(least) + " to " +
                           std::to_string(most) + " dimensions");
    return array;
}

inline void* Crossing::enter(py::handle tensor, const char* name, Type type, const Shape& shape, bool writes) {
    const Array array = look(tensor, name);
    bool fits =
        array.code == type.code && array.bits == type.bits && array.device == device_ && array.dims == shape.count();
    for (int i = 0; fits && i < shape.count(); i++) fits = array.size(i) == shape[i];
    if (!fits || (!array.data && array.count() > 0))
        dlpack::refuse(tensor, name,
                       (type.code == 2 ? "float" : "int") + std::to_string(type.bits) + " " + dlpack::named(shape) +
                           " on " + place());
    const bool negated = array.code == 2 && dlpack::is_negated(tensor);
    if (array.is_contiguous() && !negated) return array.data;
    if (writes) dlpack::refuse(tensor, name, "contiguous memory to write to");
    for (size_t i = 0; i < copies_.size(); i += 2)  // one set on both sides of a call stays one
        if (copies_[i].is(tensor)) return look(copies_[i + 1], name).data;
    copies_.push_back(py::reinterpret_borrow<py::object>(tensor));
    copies_.push_back(tensor.attr("resolve_neg")().attr("contiguous")());
    return look(copies_.back(), name).data;
}

inline const int64_t* Crossing::integers_if(py::handle tensor, const char* name, int64_t count, int64_t most) {
    if (tensor.is_none()) return nullptr;
    const auto* values = read<int64_t>(tensor, name, {count});
    for (int64_t i = 0; i < count; i++)
        if (values[i] < 0 || values[i] > most)
            throw py::value_error(std::string(name) + " must lie in 0.." + std::to_string(most) + ", got " +
                                  std::to_string(values[i]));
    return values;
}

}  // namespace gwf
