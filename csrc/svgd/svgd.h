// The direction of Stein variational gradient descent for a few hundred particles, with its median rule: pointers and
// sizes.
#pragma once
#include <cstdint>

namespace gwf {

enum class BandwidthRule {
    given,
    pairs,  // h^2 = m / (2 log(N + 1)), m the lower median of r_ij^2 over i < j
    all     // m the mean of the middle values of all N^2, zeros of the diagonal included
};

// out_i = mean_j (k_ij s_j - grad_{x_i} k_ij) with k = exp(-r^2 / (2 h^2)), in double whatever the arrays are.
template <class T> struct SvgdCall {
    int64_t batch, points, dim;
    BandwidthRule rule;
    double bandwidth;  // where it is given
    const T* x;        // [B, N, D]
    const T* score;    // [B, N, D]; null with out
    T* out;            // [B, N, D], null = only bandwidths
    T* bandwidths;     // [B], null = not wanted
};

// False where values are none, or out of the range that squares and exponents have: then more care is needed.
#define GWF_DECLARE_SVGD(isa)                     \
    bool svgd_##isa(const SvgdCall<float>& call); \
    bool svgd_##isa(const SvgdCall<double>& call);
#if defined(__x86_64__)
GWF_DECLARE_SVGD(avx512)
GWF_DECLARE_SVGD(avx2)
#endif
GWF_DECLARE_SVGD(baseline)
#undef GWF_DECLARE_SVGD

}  // namespace gwf
