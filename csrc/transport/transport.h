// Entropic transport between small sets, as the rest of the library sees it: pointers and sizes.
#pragma once
#include <cstdint>

namespace gwf {

struct TransportNumbers {
    double epsilon;
    double strength;   // rho, of marginals that are held softly; 0: they hold exactly
    double tolerance;  // marginal error at which sweeps end
    double scaling;    // factor of the descent of a length to that of epsilon before the sweeps; 0: none
    double diameter;   // where the descent begins; negative: at the box around all points
    int64_t max_iterations;
    int p;             // the cost is r^p / p, p = 1 or 2
    bool itself;       // y is x with the same weights: f = g, and there is no other problem
    bool debias;       // x with itself and y with itself count too
    bool only_anneal;  // no sweeps after the descent
    bool plain;        // sweeps of f, then g, which end in exact columns; potentials alone
};

// A batch of problems. min <pi, c> + eps KL(pi | a b') of x and y, of x with itself and of y with itself; potentials as
// gwf_fast/transport/solve.py defines them. Arrays are contiguous.
template <class T> struct TransportCall {
    int64_t batch, rows, columns, dim;
    TransportNumbers numbers;
    const T *x, *y;                               // [B, N, D], [B, M, D]
    const T *a, *b;                               // [B, N], [B, M]; null = equal ones of sum 1
    const T *start, *x_start, *y_start;           // g [B, M], own potentials [B, N], [B, M]; null = none
    const int64_t *row_lengths, *column_lengths;  // [B], null = all
    T *f, *g, *x_own, *y_own;                     // [B, N], [B, M]; null = not wanted, as all that follows
    T *error, *x_error, *y_error;                 // [B]
    T* value;                                     // [B]  the divergence, or without debias OT_eps
    T *x_slope, *y_slope, *a_slope, *b_slope;     // its gradients [B, N, D], [B, M, D], [B, N], [B, M]
    T* velocity;                                  // [B, N, D]  of the divergence's flow at x
};

struct TransportOutcome {
    bool solved = true;      // if not, the problem asks for more care: values that are none, exponents out of range
    int64_t sweeps[3] = {};  // of the three problems, the most of the batch
    double error = 0;        // the largest
};

#define GWF_DECLARE_TRANSPORT(isa)                                      \
    TransportOutcome transport_##isa(const TransportCall<float>& call); \
    TransportOutcome transport_##isa(const TransportCall<double>& call);
#if defined(__x86_64__)
GWF_DECLARE_TRANSPORT(avx512)
GWF_DECLARE_TRANSPORT(avx2)
#endif
GWF_DECLARE_TRANSPORT(baseline)
#undef GWF_DECLARE_TRANSPORT

}  // namespace gwf
