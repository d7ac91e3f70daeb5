// The pairwise reductions, as the rest of the library sees them: pointers and sizes.
#pragma once
#include <cstdint>
#include <vector>

namespace gwf {

// One term of a kernel: coefficient * profile(|x - y|^2 / bandwidth^2; parameter).
struct Term {
    int profile;
    double coefficient, bandwidth, parameter;
};

// What is summed over the columns j for each row i. b are column weights, k' the derivative of k.
enum class Reduction {
    sum,           // out [N, C]                 sum_j b_jc k_ij
    gradient,      // out [N, D]                 sum_j b_j grad_x k_ij
    sum_gradient,  // out [N], out2 [N, D]       both
    logsumexp,     // out [N]                    log sum_j e^beta_j k_ij
    average,       // out [N, C], out2 [N]       weighted mean of v_j (in b), and the logsumexp
    jet            // out [N, D], out2 [N, C]    (x, a) part of grad D_t1 .. D_tk E, see pairwise/jet.h
};

template <class T> struct Tangent {  // null = zero
    const T *x, *y, *a, *b;
};

// All arrays are contiguous, with one leading batch dimension.
template <class T> struct PairwiseCall {
    Reduction reduction;
    std::vector<Term> kernel;
    int64_t batch, rows, columns, dim, channels;
    const T* x;                     // [B, N, D]
    const T* y;                     // [B, M, D]
    const T* a;                     // [B, N, C]  jet only
    const T* b;                     // [B, M, C], null = ones (sum, gradient) or y itself (average)
    const T* row_shift;             // [B, N]     natural-log scale of a row, null = 0; jet only
    const T* column_shift;          // [B, M]     natural-log weight of a column, null = 0
    const int64_t* row_lengths;     // [B], null = all
    const int64_t* column_lengths;  // [B], null = all
    bool exclude_self;              // drop j = i
    int order;                      // of the jet: 0, 1, 2 tangents
    Tangent<T> tangents[2];
    T* out;
    T* out2;
};

template <class T> struct SteinCall;  // stein.h

// The compiled copies, one an instruction set.
struct PairwiseBackend {
    const char* name;
    void (*run_float)(const PairwiseCall<float>&);
    void (*run_double)(const PairwiseCall<double>&);
    void (*run_stein_float)(const SteinCall<float>&);
    void (*run_stein_double)(const SteinCall<double>&);
    double (*fma_peak)();  // measured single-thread float operations per second
};

#if defined(__x86_64__)
extern const PairwiseBackend pairwise_avx512, pairwise_avx2;
#endif
extern const PairwiseBackend pairwise_baseline;

}  // namespace gwf
