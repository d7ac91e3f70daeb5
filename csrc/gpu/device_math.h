// Elementary functions on one number, for GPUs: what profiles_generated.h is written in, as csrc/simd/math.h is for
// vectors of the CPU. Also plain C++, so that a CPU test runs the very same pair arithmetic.
// float: compiled with flush-to-zero, exp2f is one instruction; results below 2**-126 are 0.
#pragma once
#include <cmath>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define GWF_DEVICE __host__ __device__ __forceinline__
#else
#define GWF_DEVICE inline
#endif
#undef GWF_INLINE
#define GWF_INLINE GWF_DEVICE

namespace gwf::gpu {

template <class V> using scalar_t = V;

struct NoShift {};

GWF_DEVICE float exp2_of(float x) { return exp2f(x); }
GWF_DEVICE double exp2_of(double x) { return exp2(x); }
GWF_DEVICE float root(float t) { return sqrtf(t); }
GWF_DEVICE double root(double t) { return sqrt(t); }
template <class V> GWF_DEVICE V root_from(V t, V inverse_root) { return inverse_root * t; }
GWF_DEVICE float log2_of(float u) { return log2f(u); }
GWF_DEVICE double log2_of(double u) { return log2(u); }

#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
GWF_DEVICE float rsqrt(float u) { return rsqrtf(u); }
GWF_DEVICE double rsqrt(double u) { return ::rsqrt(u); }
#else
GWF_DEVICE float rsqrt(float u) { return 1.0f / sqrtf(u); }
GWF_DEVICE double rsqrt(double u) { return 1.0 / sqrt(u); }
#endif

template <class V> GWF_DEVICE V exp2_minus(NoShift, V x) { return exp2_of(-x); }
template <class V> GWF_DEVICE V exp2_minus(V shift, V x) { return exp2_of(shift - x); }
template <class V> GWF_DEVICE V times_exp2(V value, NoShift) { return value; }
template <class V> GWF_DEVICE V times_exp2(V value, V shift) { return value * exp2_of(shift); }
template <class V> GWF_DEVICE V two_rsqrt(V u) { return V(2) * rsqrt(u); }
template <class V> GWF_DEVICE V inverse(V u) { return V(1) / u; }

// At coincident points every negative power, and the logarithm, is 0. Comparisons are written so that NaN stays NaN.
template <class V> GWF_DEVICE V rsqrt0(V t) { return t == V(0) ? V(0) : rsqrt(t); }
template <class V> GWF_DEVICE V log0(V t) { return t == V(0) ? V(0) : log2_of(t) * V(0.6931471805599453); }
template <class V> GWF_DEVICE V pow0(V t, V e) {
    if (t == V(0)) return e == V(0) ? V(1) : V(0);
    return exp2_of(e * log2_of(t));
}

// What the networks and the draws are written in (mlp/functions.h, random/counters.h).
template <class T> GWF_DEVICE T splat(T value) { return value; }
template <class V> GWF_DEVICE V smaller(V a, V b) { return a < b ? a : b; }  // b where either is NaN
template <class V> GWF_DEVICE V larger(V a, V b) { return a > b ? a : b; }
template <class V> GWF_DEVICE V square_root(V a) { return root(a); }
GWF_DEVICE float exp_of(float x) { return expf(x); }
GWF_DEVICE double exp_of(double x) { return exp(x); }
GWF_DEVICE float expm1_of(float x) { return expm1f(x); }
GWF_DEVICE double expm1_of(double x) { return expm1(x); }

template <class V> struct Exponential {
    V x;
    GWF_DEVICE V value() const { return exp_of(x); }
    GWF_DEVICE V minus_one() const { return expm1_of(x); }
};
template <class V> GWF_DEVICE Exponential<V> exponential(V x) { return {x}; }

#include "pairwise/profiles_generated.h"

#define GWF_ONE(id, P) +1
constexpr int profile_count = 0 GWF_FOR_EACH_PROFILE(GWF_ONE);
#undef GWF_ONE

}  // namespace gwf::gpu
