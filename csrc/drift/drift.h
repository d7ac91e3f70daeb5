// Drifting (Deng et al. 2026), as the rest of the library sees it: pointers and sizes.
#pragma once
#include <cstdint>

namespace gwf {

struct DriftSizes {
    int64_t rows, split, columns;
};

// Forces of Algorithm 2 on joint targets, best in coordinates about their centre: with L = -(r + own) / T + log v, A =
// sqrt(max(softmax_rows softmax_columns, clip)) w, or 0 where v is, V_i = (sum_neg A_i) (sum_pos A_ij y_j) - (sum_pos
// A_i) (sum_neg A_ij y_j). Arrays are contiguous.
template <class T> struct DriftCall {
    int64_t batch, rows, columns, split, dim, rates;
    const T* x;               // [B, N, D]
    const T* y;               // [B, M, D]  targets: negatives, then positives from column split on
    const T* weights;         // w [B, M], or [B, N, M] if by_row; null = ones
    bool by_row;              // weights are each row's own
    const T* log_weights;     // log v [B, M], null = zeros
    const T* temperatures;    // [K, B]
    const T* own;             // [B]  added to the distance of row i and column i, null = there is no such pair
    const DriftSizes* sizes;  // [B]  of each problem, padded to N and M; null = N, split and M
    double floor;             // least squared distance
    double clip;              // least product of the softmaxes
    T* out;                   // [K, B, N, D], null = not wanted
    double* total;            // [B]  sum_ij w_j r_ij; null = not wanted
};

#define GWF_DECLARE_DRIFT(isa)                      \
    void drift_##isa(const DriftCall<float>& call); \
    void drift_##isa(const DriftCall<double>& call);
#if defined(__x86_64__)
GWF_DECLARE_DRIFT(avx512)
GWF_DECLARE_DRIFT(avx2)
#endif
GWF_DECLARE_DRIFT(baseline)
#undef GWF_DECLARE_DRIFT

}  // namespace gwf
