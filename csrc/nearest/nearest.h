// The nearest sources of each target: pointers and sizes.
#pragma once
#include <cstdint>

namespace gwf {

// All arrays are contiguous, with one leading batch dimension.
template <class T> struct NearestCall {
    int64_t batch, rows, columns, dim, count;  // count: of neighbours, k
    const T* x;                                // [B, N, D]
    const T* y;                                // [B, M, D]
    const int64_t* row_lengths;                // [B], null = all
    const int64_t* column_lengths;             // [B], null = all
    bool exclude_self;                         // drop j = i
    T* squares;                                // [B, N, k]  |x_i - y_j|^2, ascending
    int64_t* indices;                          // [B, N, k]  j; -1 where there are fewer than k sources
};

// Of equal distances the lowest index comes first, and NaN before every number. Rows that do not exist read 0 and -1,
// sources that do not exist infinity and -1.
#define GWF_DECLARE_NEAREST(isa)                        \
    void nearest_##isa(const NearestCall<float>& call); \
    void nearest_##isa(const NearestCall<double>& call);
#if defined(__x86_64__)
GWF_DECLARE_NEAREST(avx512)
GWF_DECLARE_NEAREST(avx2)
#endif
GWF_DECLARE_NEAREST(baseline)
#undef GWF_DECLARE_NEAREST

}  // namespace gwf
