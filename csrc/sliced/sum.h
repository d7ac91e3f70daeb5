// Sums over all pairs of numbers, of a function of their distance: what slicing makes of a radial kernel in R^D.
#pragma once
#include <cstdint>

namespace gwf {

// out[l, c, i] = sum_j w[l, c, j] f^(order)(x[l, i] - y[l, j]) for the even function
//     f(t) = sum_m a_m cos(2 pi m t / period) + sum_k b_k |t|^k + sum_q c_q exp(-rate_q |t|),
//     m = first .. first + modes - 1,  k = 0 .. powers - 1,  q = 0 .. nodes - 1.
// Waves are summed one after the other, powers from the order of the points, exponentials by sweeps over the order, and
// as `tied` says at t = 0; derivatives of |t| at 0 read 0. A line (one direction) is summed by one
// thread. Arrays are contiguous; x and y may be the same.
template <class T> struct SlicedSumCall {
    int order;
    int64_t lines, rows, columns, channels;
    int64_t weight_stride;     // from one line's weights to the next's; 0: all have the same
    const T *x, *y, *weights;  // [lines, rows], [lines, columns], [lines or 1, channels, columns]
    double period;
    int64_t first, modes, powers;
    const double *waves, *power;  // a [modes]; b [powers], powers <= most_powers
    int64_t nodes;
    const double *rates, *decays;  // [nodes], rates increasing; c
    double tied;                   // what takes the place of the exponentials at t = 0
    T* out;                        // [lines, channels, rows]
};

inline constexpr int most_powers = 8;

struct SlicedSumBackend {
    const char* name;
    void (*run_float)(const SlicedSumCall<float>&);
    void (*run_double)(const SlicedSumCall<double>&);
};

extern const SlicedSumBackend sliced_sum_avx512, sliced_sum_avx2, sliced_sum_baseline;

}  // namespace gwf
