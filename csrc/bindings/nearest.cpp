// Nearest neighbours: tensors to pointers.
#include "bindings/nearest.h"

#include <string_view>

#include "bindings/crossing.h"
#include "nearest/nearest.h"

namespace gwf {
namespace {

const char* (*active_set)() = nullptr;

template <class T>
void nearest(const Array& x, py::handle y, bool exclude_self, py::handle row_lengths, py::handle column_lengths,
             py::handle squares, py::handle indices) {
    Crossing crossing;
    const Array sources = Crossing::look(y, "y"), out = Crossing::look(squares, "squares");
    if (sources.dims != x.dims || out.dims != x.dims) throw py::value_error("nearest: arrays of one batch shape");
    Shape batch;
    if (x.dims == 3) batch.add(x.size(0));
    NearestCall<T> call{};
    call.batch = x.dims == 3 ? x.size(0) : 1;
    call.rows = x.size(-2), call.columns = sources.size(-2), call.dim = x.size(-1), call.count = out.size(-1);
    const Shape rows = batch.with(call.rows), found = rows.with(call.count);
    call.x = crossing.read<T>(x.tensor, "x", rows.with(call.dim));
    call.y = crossing.read<T>(y, "y", batch.with(call.columns).with(call.dim));
    call.row_lengths = crossing.integers_if(row_lengths, "row_lengths", call.batch, call.rows);
    call.column_lengths = crossing.integers_if(column_lengths, "column_lengths", call.batch, call.columns);
    call.exclude_self = exclude_self;
    call.squares = crossing.write<T>(squares, "squares", found);
    call.indices = crossing.write<int64_t>(indices, "indices", found);
    const py::gil_scoped_release release;
#if defined(__x86_64__)
    const std::string_view name = active_set();
    if (name == "avx512") return nearest_avx512(call);
    if (name == "avx2") return nearest_avx2(call);
#endif
    nearest_baseline(call);
}

}  // namespace

void bind_nearest(py::module_& m, const char* (*instruction_set)()) {
    active_set = instruction_set;
    m.def(
        "nearest",
        [](py::handle x, py::handle y, bool exclude_self, py::handle row_lengths, py::handle column_lengths,
           py::handle squares, py::handle indices) {
            const Array points = Crossing().leading(x, "x", 2, 3);
            (points.is_double() ? nearest<double> : nearest<float>)(points, y, exclude_self, row_lengths,
                                                                    column_lengths, squares, indices);
        },
        "Squared distances and indices of the nearest sources (csrc/nearest/nearest.h).", py::arg("x"), py::arg("y"),
        py::arg("exclude_self"), py::arg("row_lengths"), py::arg("column_lengths"), py::arg("squares"),
        py::arg("indices"), py::pos_only());
}

}  // namespace gwf
