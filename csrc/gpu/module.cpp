// Python module gwf_fast._cuda: pointers as integers, error codes as exceptions.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "gpu/grid.h"
#include "gpu/pairwise.h"
#include "gpu/primal_dual_module.h"

namespace py = pybind11;
using Pointer = std::uintptr_t;
using TermTuple = std::tuple<int, double, double, double>;

namespace {

template <class T> T* as(Pointer address) { return reinterpret_cast<T*>(address); }

void rows(bool is_double, Pointer x, Pointer sources, Pointer base, Pointer out, Pointer x_lengths, Pointer y_lengths,
          std::int64_t batch, std::int64_t n, std::int64_t m_padded, int dim, int splits, bool gradient,
          bool exclude_self, double scale, const std::vector<TermTuple>& terms, Pointer stream) {
    std::vector<gwf::gpu::Term> list;
    for (const auto& [profile, coefficient, ratio, parameter] : terms)
        list.push_back({profile, coefficient, ratio, parameter});
    const gwf::gpu::Request request{as<void>(x),
                                    as<void>(sources),
                                    as<void>(base),
                                    as<void>(out),
                                    as<std::int64_t>(x_lengths),
                                    as<std::int64_t>(y_lengths),
                                    batch,
                                    n,
                                    m_padded,
                                    dim,
                                    splits,
                                    gradient,
                                    exclude_self,
                                    scale,
                                    list.data(),
                                    static_cast<int>(list.size())};
    const int code =
        is_double ? gwf::gpu::rows_double(request, as<void>(stream)) : gwf::gpu::rows_float(request, as<void>(stream));
    if (code != 0) throw std::runtime_error("gwf_fast._cuda.rows: " + std::string(gwf::gpu::error_text(code)));
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    module.doc() = "Sums over sources, and the inner loop of a JKO step, on a GPU; see csrc/gpu.";
    module.attr("tile") = gwf::gpu::tile;
    module.attr("max_terms") = gwf::gpu::max_terms;
    module.def(
        "rows_per_block",
        [](bool is_double, std::size_t terms) {
            return gwf::gpu::threads * gwf::gpu::rows_of(terms, is_double ? sizeof(double) : sizeof(float));
        },
        "Rows that one block sums.");
    module.def("packed_width", &gwf::gpu::packed_width);
    module.def("rows", &rows, py::call_guard<py::gil_scoped_release>());
    gwf::gpu::bind_primal_dual(module);
}
