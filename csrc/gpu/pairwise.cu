// Sums and gradients for D <= 4: rows in registers, tiles of sources in shared memory. No atomics: each row is summed
// by one thread in the order of its sources, so that results are the same in every run.
#include "gpu/launch.h"
#include "gpu/pairwise.h"
#include "gpu/rows.h"

namespace gwf::gpu {
namespace {

template <class T> struct Arguments {
    const T *x, *sources, *base;
    T* out;
    const std::int64_t *x_lengths, *y_lengths;
    std::int64_t batch, n, m_padded, row_blocks;
    int splits;
    bool exclude_self;
    T scale;
    Terms<T> terms;
};

template <int width, class T> struct alignas(sizeof(T) * width > 16 ? 16 : sizeof(T) * width) Packed {
    T value[width];
};

template <class Profile, int D, int K, class T>
__global__ void __launch_bounds__(threads) rows_kernel(const Arguments<T> a) {
    constexpr int R = Profile::template rows<T>, outputs = K == 0 ? 1 : D, width = packed_width(D);
    using Source = Packed<width, T>;
    __shared__ Source shared[tile];
    const Place here = place(blockIdx.x, a.row_blocks, a.batch, R);
    const std::int64_t rows = a.x_lengths ? a.x_lengths[here.batch] : a.n;
    const std::int64_t columns = a.y_lengths ? a.y_lengths[here.batch] : a.m_padded;
    const Range range = source_range(columns, here.split, a.splits);
    const Source* sources = reinterpret_cast<const Source*>(a.sources) + here.batch * a.m_padded;
    const std::int64_t first = here.first_row + threadIdx.x;  // rows first, first + threads, ...

    T x[R][D], totals[R][outputs] = {};
    GWF_UNROLL_ALL
    for (int r = 0; r < R; r++) {
        const std::int64_t row = first + std::int64_t(r) * threads;
        GWF_UNROLL_ALL
        for (int k = 0; k < D; k++) x[r][k] = row < a.n ? a.x[(here.batch * a.n + row) * D + k] : T(0);
    }
    if (here.first_row < rows) {
        for (std::int64_t start = range.begin; start < range.end; start += tile) {
            __syncthreads();
            shared[threadIdx.x] = sources[start + threadIdx.x];
            __syncthreads();
            const T* values = shared[0].value;
            const bool meets = start < here.first_row + std::int64_t(R) * threads && start + tile > here.first_row;
            // row == source: start + j == first + r * threads
            if (a.exclude_self && meets)
                add_tile<Profile, D, K, R, true>(x, values, tile, first - start, threads, a.terms, totals);
            else
                add_tile<Profile, D, K, R, false>(x, values, tile, 0, threads, a.terms, totals);
        }
    }
    GWF_UNROLL_ALL
    for (int r = 0; r < R; r++) {
        const std::int64_t row = first + std::int64_t(r) * threads;
        if (row >= a.n) continue;
        GWF_UNROLL_ALL
        for (int k = 0; k < outputs; k++) {
            const std::int64_t at = (here.batch * a.n + row) * outputs + k;
            const T value = row < rows ? a.scale * totals[r][k] : T(0);
            a.out[here.split * a.batch * a.n * outputs + at] = a.base ? a.base[at] + value : value;
        }
    }
}

template <class Profile, int D, class T>
int start(const Request& r, const Arguments<T>& a, std::int64_t blocks, Stream stream) {
    if (r.gradient) return launch(rows_kernel<Profile, D, 1, T>, blocks, threads, stream, a);
    return launch(rows_kernel<Profile, D, 0, T>, blocks, threads, stream, a);
}

template <class Profile, class T>
int with_dim(const Request& r, const Arguments<T>& a, std::int64_t blocks, Stream stream) {
    switch (r.dim) {
        case 1:
            return start<Profile, 1>(r, a, blocks, stream);
        case 2:
            return start<Profile, 2>(r, a, blocks, stream);
        case 3:
            return start<Profile, 3>(r, a, blocks, stream);
        default:
            return start<Profile, 4>(r, a, blocks, stream);
    }
}

template <class T> int run(const Request& r, Stream stream) {
    const Grid grid = row_grid(r.batch, r.n, r.m_padded, r.dim, rows_of(r.term_count, sizeof(T)), r.splits);
    if (grid.problem != ok) return grid.problem;
    if (r.term_count < 1 || r.term_count > max_terms) return bad_terms;
    if (grid.blocks == 0) return ok;
    Arguments<T> a{
        (const T*)r.x, (const T*)r.sources, (const T*)r.base, (T*)r.out, r.x_lengths,    r.y_lengths, r.batch,
        r.n,           r.m_padded,          grid.row_blocks,  r.splits,  r.exclude_self, T(r.scale),  {}};
    a.terms.count = r.term_count;
    for (int m = 0; m < r.term_count; m++) {
        if (r.terms[m].profile < 0 || r.terms[m].profile >= profile_count) return bad_terms;
        a.terms.profile[m] = r.terms[m].profile;
        a.terms.coefficient[m] = T(r.terms[m].coefficient);
        a.terms.ratio[m] = T(r.terms[m].ratio);
        a.terms.parameter[m] = T(r.terms[m].parameter);
    }
    if (r.term_count > 1) return with_dim<Mixture>(r, a, grid.blocks, stream);
    a.scale *= a.terms.coefficient[0];
    switch (r.terms[0].profile) {
#define GWF_CASE(id, P) \
    case id:            \
        return with_dim<Single<P>>(r, a, grid.blocks, stream);
        GWF_FOR_EACH_PROFILE(GWF_CASE)
#undef GWF_CASE
    }
    return bad_terms;
}

}  // namespace

#if !defined(GWF_ONLY_DOUBLE)
int rows_float(const Request& request, void* stream) { return run<float>(request, static_cast<Stream>(stream)); }
const char* error_text(int code) { return code < 0 ? describe(code) : error_string(code); }
#endif
#if !defined(GWF_ONLY_FLOAT)
int rows_double(const Request& request, void* stream) { return run<double>(request, static_cast<Stream>(stream)); }
#endif

}  // namespace gwf::gpu
