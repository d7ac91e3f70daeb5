// The arithmetic of csrc/gpu/rows.h and grid.h as a plain C++ library: blocks and threads become loops. A test loads
// it.
#include <cstring>

#include "gpu/pairwise.h"
#include "gpu/rows.h"

using namespace gwf::gpu;

namespace {

template <class Profile, int D, int K, class T> void run(const Request& q, const Terms<T>& terms, T scale, Grid grid) {
    constexpr int R = Profile::template rows<T>, outputs = K == 0 ? 1 : D, width = packed_width(D);
    const T *all_x = (const T*)q.x, *all_sources = (const T*)q.sources, *base = (const T*)q.base;
    for (std::int64_t block = 0; block < grid.blocks; block++) {
        const Place here = place(block, grid.row_blocks, q.batch, R);
        const std::int64_t rows = q.x_lengths ? q.x_lengths[here.batch] : q.n;
        const std::int64_t columns = q.y_lengths ? q.y_lengths[here.batch] : q.m_padded;
        const Range range = source_range(columns, here.split, q.splits);
        for (int thread = 0; thread < threads; thread++) {
            const std::int64_t first = here.first_row + thread;
            T x[R][D] = {}, totals[R][outputs] = {};
            for (int r = 0; r < R; r++)
                for (int k = 0; k < D; k++)
                    if (first + r * threads < q.n) x[r][k] = all_x[(here.batch * q.n + first + r * threads) * D + k];
            for (std::int64_t start = range.begin; start < range.end && here.first_row < rows; start += tile) {
                const T* sources = all_sources + (here.batch * q.m_padded + start) * width;
                if (q.exclude_self)
                    add_tile<Profile, D, K, R, true>(x, sources, tile, first - start, threads, terms, totals);
                else
                    add_tile<Profile, D, K, R, false>(x, sources, tile, 0, threads, terms, totals);
            }
            for (int r = 0; r < R; r++) {
                const std::int64_t row = first + r * threads;
                for (int k = 0; k < outputs && row < q.n; k++) {
                    const std::int64_t at = (here.batch * q.n + row) * outputs + k;
                    const T value = row < rows ? scale * totals[r][k] : T(0);
                    ((T*)q.out)[here.split * q.batch * q.n * outputs + at] = base ? base[at] + value : value;
                }
            }
        }
    }
}

template <class Profile, class T> void with_dim(const Request& q, const Terms<T>& terms, T scale, Grid grid) {
#define GWF_DIM(D)  \
    if (q.dim == D) \
        return q.gradient ? run<Profile, D, 1>(q, terms, scale, grid) : run<Profile, D, 0>(q, terms, scale, grid);
    GWF_DIM(1) GWF_DIM(2) GWF_DIM(3) GWF_DIM(4)
#undef GWF_DIM
}

template <class T> int start(const Request& q) {
    const Grid grid = row_grid(q.batch, q.n, q.m_padded, q.dim, rows_of(q.term_count, sizeof(T)), q.splits);
    if (grid.problem != ok) return grid.problem;
    Terms<T> terms{};
    terms.count = q.term_count;
    for (int m = 0; m < q.term_count; m++) {
        terms.profile[m] = q.terms[m].profile;
        terms.coefficient[m] = T(q.terms[m].coefficient);
        terms.ratio[m] = T(q.terms[m].ratio);
        terms.parameter[m] = T(q.terms[m].parameter);
    }
    const T scale = T(q.scale);
    if (q.term_count > 1) return with_dim<Mixture>(q, terms, scale, grid), ok;
#define GWF_CASE(id, P) \
    if (q.terms[0].profile == id) return with_dim<Single<P>>(q, terms, scale * terms.coefficient[0], grid), ok;
    GWF_FOR_EACH_PROFILE(GWF_CASE)
#undef GWF_CASE
    return bad_terms;
}

}  // namespace

extern "C" {
int host_rows(int is_double, const Request* request) {
    return is_double ? start<double>(*request) : start<float>(*request);
}
int host_packed_width(int dim) { return packed_width(dim); }
int host_tile() { return tile; }
int host_rows_per_block(int is_double, int terms) { return threads * rows_of(terms, is_double ? 8 : 4); }
void host_grid(std::int64_t batch, std::int64_t n, std::int64_t m, int dim, int rows, int splits, std::int64_t* out) {
    const Grid grid = row_grid(batch, n, m, dim, rows, splits);
    out[0] = grid.row_blocks, out[1] = grid.blocks, out[2] = grid.problem;
}
void host_place(std::int64_t block, std::int64_t row_blocks, std::int64_t batch, int rows, std::int64_t* out) {
    const Place here = place(block, row_blocks, batch, rows);
    out[0] = here.split, out[1] = here.batch, out[2] = here.first_row;
}
void host_range(std::int64_t columns, std::int64_t split, int splits, std::int64_t* out) {
    const Range range = source_range(columns, split, splits);
    out[0] = range.begin, out[1] = range.end;
}
}
