// Discrepancies and directions by the short way (direct.h).
#include <cmath>
#include <limits>
#include <string_view>

#include "bindings/direct_call.h"
#include "pairwise/mmd.h"
#include "svgd/svgd.h"

namespace gwf::direct {
namespace {

template <class T>
void run_mmd(const Known& kernel, const Pair& pair, const View& a, const View& b, bool unbiased, void* value,
             const std::array<Made, 4>& gradients) {
    Ordered ordered;
    const MmdCall<T> call{kernel.terms,
                          pair.batch,
                          pair.n,
                          pair.m,
                          pair.dim,
                          ordered.operator()<T>(pair.x),
                          ordered.operator()<T>(pair.y),
                          ordered.operator()<T>(a),
                          ordered.operator()<T>(b),
                          unbiased,
                          static_cast<T*>(value),
                          gradients[0].as<T>(),
                          gradients[1].as<T>(),
                          gradients[2].as<T>(),
                          gradients[3].as<T>()};
    const auto run = runner<T>();
    const Unlocked unlocked;
    Mmd<T>(call, run).compute();
}

}  // namespace

Owned mmd_function(Function& function, const Arguments& given) {
    Pair pair;
    View a, b;
    bool unbiased = false;
    if (!pair.look(given[x_], given[y_]) || !read_flag(given[exclude_self_], unbiased)) return none();
    if (pair.n < 1 + unbiased || pair.m < 1 + unbiased) return none();
    if (!look_companion(given[third_], pair.swapped(), a) || !look_companion(given[fourth_], pair, b)) return none();
    const Kernel kernel = known_kernel(given[kernel_]);
    if (!kernel || !function.is_served(pair.x.is_double)) return none();
    const View* const views[] = {&pair.x, &pair.y, &a, &b};
    bool needs = false;
    for (const View* view : views) needs |= view->needs_grad;
    const bool graph = needs && Torch::get().grows_graphs();
    std::array<Made, 4> gradients;
    for (size_t i = 0; graph && i < 4; i++)
        if (views[i]->needs_grad) gradients[i] = Made(*views[i], views[i]->sizes, views[i]->dims);
    Made value(pair.x, pair.x.sizes, pair.x.dims - 2);
    if (pair.x.is_double)
        run_mmd<double>(*kernel, pair, a, b, unbiased, value.data, gradients);
    else
        run_mmd<float>(*kernel, pair, a, b, unbiased, value.data, gradients);
    if (!graph) return value.object();
    const Owned rest = packed({kernel->spec.get(), unbiased ? Py_True : Py_False});
    const Owned slopes = packed({or_none(gradients[0].tensor.get()), or_none(gradients[1].tensor.get()),
                                 or_none(gradients[2].tensor.get()), or_none(gradients[3].tensor.get())});
    const Owned made = packed({value.tensor.get(), slopes.get(), rest.get()});
    PyObject* const arguments[] = {given[x_], given[y_], or_none(given[third_]), or_none(given[fourth_]), made.get()};
    return Owned(checked(PyObject_Vectorcall(function.apply, arguments, 5, nullptr)));
}

// ------------------------------------------------------------------------------------------------ Stein

namespace {

template <class T> bool run_svgd(const Pair& pair, int64_t batch, double bandwidth, void* out) {
    Ordered ordered;
    SvgdCall<T> call{};
    call.batch = batch, call.points = pair.x.size(-2), call.dim = pair.x.size(-1);
    call.rule = BandwidthRule::given, call.bandwidth = bandwidth;
    call.x = ordered.template operator()<T>(pair.x), call.score = ordered.template operator()<T>(pair.y);
    call.out = static_cast<T*>(out);
    const Unlocked unlocked;
#if defined(__x86_64__)
    const std::string_view name = active()->name;
    if (name == "avx512") return svgd_avx512(call);
    if (name == "avx2") return svgd_avx2(call);
#endif
    return svgd_baseline(call);
}

// The bandwidth of a kernel that is a Gaussian and nothing else; 0 of any other.
double gaussian_bandwidth(const Known& kernel) {
    const Term& term = kernel.terms.front();
    return kernel.terms.size() == 1 && term.profile == 0 && term.coefficient == 1 ? term.bandwidth : 0;
}

constexpr int64_t largest_svgd = 256;  // LARGEST_SVGD of kernels/cpp/small.py

}  // namespace

// x and score [*B, N, D] of few points; y is the score's place.
Owned svgd_function(Function& function, const Arguments& given) {
    Pair pair;
    View &x = pair.x, &score = pair.y;
    if (!x.look(given[x_]) || !score.look(given[y_]) || x.dims < 2 || x.dims > 4 || score.dims != x.dims) return none();
    if (x.is_double != score.is_double || !std::equal(x.sizes, x.sizes + x.dims, score.sizes)) return none();
    if (!x.count() || x.size(-2) > largest_svgd || !Ordered::takes(x) || !Ordered::takes(score)) return none();
    const Kernel kernel = known_kernel(given[kernel_]);
    const double bandwidth = kernel ? gaussian_bandwidth(*kernel) : 0;
    if (!bandwidth || !function.is_served(x.is_double)) return none();
    if ((x.needs_grad || score.needs_grad) && Torch::get().grows_graphs()) return none();
    const int64_t batch = x.count() / (x.size(-2) * x.size(-1));
    Made out(x, x.sizes, x.dims);
    const bool done = (x.is_double ? run_svgd<double> : run_svgd<float>)(pair, batch, bandwidth, out.data);
    return done ? out.object() : none();
}

// ------------------------------------------------------------------------------------------------ Parzen's score

namespace {

// centre_of of gwf_fast/pairs/passes.py, number by number: a point amid the sources, of few bits.
template <class T> void find_centre(const T* y, int64_t m, int64_t dim, T* centre) {
    constexpr int64_t most = 256;  // _SAMPLE
    const int64_t step = (m + most - 1) / most, count = (m + step - 1) / step;
    T column[most];
    const auto before = [](T a, T b) { return std::isnan(b) ? !std::isnan(a) : a < b; };
    for (int64_t d = 0; d < dim; d++) {
        for (int64_t i = 0; i < count; i++) column[i] = y[i * step * dim + d];
        std::sort(column, column + count, before);
        const T low = column[count / 4], middle = column[count / 2], high = column[3 * count / 4];
        const volatile T scaled = middle * T(257);  // volatile: one rounding an operation, whatever the processor has
        const volatile T rest = scaled - middle;
        const volatile T leading = scaled - rest;
        const T above = high - middle, below = middle - low, closer = std::fmin(above, below);
        const T spread = closer > 0 ? closer : std::fmax(above, below);
        centre[d] = std::isfinite(leading) && std::abs(middle) > 8 * spread ? T(leading) : T(0);
    }
}

template <class T> std::vector<T> moved(const T* points, int64_t count, int64_t dim, const T* centre) {
    std::vector<T> out(size_t(count * dim));
    for (int64_t i = 0; i < count; i++)
        for (int64_t d = 0; d < dim; d++) out[size_t(i * dim + d)] = points[i * dim + d] - centre[d];
    return out;
}

// (mean shift - x) / h^2 of each problem, with the origin amid its sources.
template <class T> void run_score(const Known& kernel, const Pair& pair, bool exclude_self, double square, void* out) {
    Ordered ordered;
    const T *x = ordered.operator()<T>(pair.x), *y = ordered.operator()<T>(pair.y);
    const int64_t dim = pair.dim;
    const auto run = runner<T>();
    const Unlocked unlocked;
    std::vector<T> centre(static_cast<size_t>(dim)), u, v;
    for (int64_t k = 0; k < pair.batch; k++) {
        const T *from = x + k * pair.n * dim, *sources = y + k * pair.m * dim;
        find_centre(sources, pair.m, dim, centre.data());
        const auto a = moved(from, pair.n, dim, centre.data());
        u.insert(u.end(), a.begin(), a.end());
        if (pair.x.tensor == pair.y.tensor) continue;
        const auto b = moved(sources, pair.m, dim, centre.data());
        v.insert(v.end(), b.begin(), b.end());
    }
    std::vector<T> logarithms(size_t(pair.batch * pair.n));
    PairwiseCall<T> call{};
    call.reduction = Reduction::average;
    call.kernel = kernel.terms;
    call.batch = pair.batch, call.rows = pair.n, call.columns = pair.m, call.dim = call.channels = dim;
    call.x = u.data(), call.y = pair.x.tensor == pair.y.tensor ? u.data() : v.data();
    call.exclude_self = exclude_self;
    call.out = static_cast<T*>(out), call.out2 = logarithms.data();
    run(call);
    for (size_t i = 0; i < u.size(); i++) call.out[i] = (call.out[i] - u[i]) / T(square);
}

template <class T> bool is_normal(double number) {
    return number >= double(std::numeric_limits<T>::min()) && number <= double(std::numeric_limits<T>::max());
}

}  // namespace

Owned score_function(Function& function, const Arguments& given) {
    Pair pair;
    bool exclude_self = false;
    if (!pair.look(given[x_], given[y_]) || !read_flag(given[exclude_self_], exclude_self)) return none();
    if (!pair.n || !pair.batch || pair.m <= int64_t(exclude_self) || (exclude_self && pair.n != pair.m)) return none();
    const Kernel kernel = known_kernel(given[kernel_]);
    const volatile double two = 2;  // h**2 as Python has it: by the function, whose rounding is not that of h * h
    const double square = std::pow(kernel ? gaussian_bandwidth(*kernel) : 0, two);
    if (!(pair.x.is_double ? is_normal<double> : is_normal<float>)(square)) return none();
    if (!function.is_served(pair.x.is_double)) return none();
    if ((pair.x.needs_grad || pair.y.needs_grad) && Torch::get().grows_graphs()) return none();
    Made out(pair.x, pair.x.sizes, pair.x.dims);
    (pair.x.is_double ? run_score<double> : run_score<float>)(*kernel, pair, exclude_self, square, out.data);
    return out.object();
}

// ------------------------------------------------------------------------------------------------ backward passes

namespace {

template <class T> void multiply(const View& factor, const View& values, void* out) {
    const T *by = static_cast<const T*>(factor.data), *from = static_cast<const T*>(values.data);
    T* to = static_cast<T*>(out);
    const int64_t batch = factor.dims ? factor.size(0) : 1, each = batch ? values.count() / batch : 0;
    for (int64_t k = 0; k < batch; k++)
        for (int64_t i = 0; i < each; i++) *to++ = by[k * (factor.dims ? factor.strides[0] : 0)] * *from++;
}

}  // namespace

// scaled(factor, values ...): each tensor times a number [] or, of each in a batch, [B]; None where it is None.
Owned scaled(PyObject* const* args, Py_ssize_t count) {
    View factor;
    if (!factor.look(args[0]) || factor.dims > 1) return none();
    Owned out(checked(PyTuple_New(count - 1)));
    for (Py_ssize_t i = 1; i < count; i++) {
        View values;
        Owned made = none();
        if (args[i] != Py_None) {
            if (!values.look(args[i]) || values.is_double != factor.is_double || !values.is_contiguous()) return none();
            if (factor.dims && (!values.dims || values.size(0) != factor.size(0))) return none();
            Made product(values, values.sizes, values.dims);
            (values.is_double ? multiply<double> : multiply<float>)(factor, values, product.data);
            made = product.object();
        }
        PyTuple_SET_ITEM(out.get(), i - 1, made.release());
    }
    return out;
}

}  // namespace gwf::direct
