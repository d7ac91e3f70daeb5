// Sliced discrepancies: sums over directions of what sorting solves in one dimension.
#pragma once
#include <cstdint>

namespace gwf {

enum class SlicedKind { wasserstein, energy, power };

// All sets of a batch share the directions. Arrays are contiguous; any but x, y and directions may be absent.
template <class T> struct SlicedCall {
    SlicedKind kind;
    double power;  // of the Wasserstein cost |a - b|^power, or of the distance in 2 E|a-b|^e - E|a-a'|^e - E|b-b'|^e
    double scale;  // of the gradients
    int64_t batch, rows, columns, dim, directions;
    const T *x, *y, *theta;                      // [batch, rows, dim], [batch, columns, dim], [directions, dim]
    const double *row_weights, *column_weights;  // [batch, rows], [batch, columns], each set summing to 1; 1 / count
    const T *x_tangent, *y_tangent;              // where given, gradients are replaced by their derivative along these
    T *x_gradient, *y_gradient;                  // shapes of x and y
    double* values;                              // [batch, directions]
    const int64_t *row_counts, *column_counts;   // [batch], sizes of ragged sets; the rest is not read, gradients are 0
    double *x_potential, *y_potential;           // [batch, rows], [batch, columns]  derivatives in the weights, scaled
    int64_t nodes;                               // u^(e-1) = sum_q coefficients_q exp(-rates_q u) for u in (0, 1]
    const double *rates, *coefficients;          // of which the first rate is 0
};

struct SlicedBackend {
    const char* name;
    void (*run_float)(const SlicedCall<float>&);
    void (*run_double)(const SlicedCall<double>&);
};

extern const SlicedBackend sliced_avx512, sliced_avx2, sliced_baseline;

}  // namespace gwf
