// Philox4x32-10 (Salmon et al., SC 2011) and what is made of its words, on one number or on vectors: the CPU's batches
// (philox.h) and the threads of a GPU see the same numbers. Included after simd/math.h or gpu/device_math.h, whose
// functions it uses.
#pragma once
#include <cstdint>

namespace gwf::GWF_ISA {

inline constexpr int philox_lanes = 16;  // blocks at a time, whatever the vectors: the order of the numbers is fixed

GWF_INLINE void philox_round(uint32_t key0, uint32_t key1, uint32_t& w0, uint32_t& w1, uint32_t& w2, uint32_t& w3) {
    const uint64_t p = uint64_t(0xD2511F53u) * w0, q = uint64_t(0xCD9E8D57u) * w2;
    const uint32_t a = uint32_t(q >> 32) ^ w1 ^ key0, c = uint32_t(p >> 32) ^ w3 ^ key1;
    w0 = a;
    w1 = uint32_t(q);
    w2 = c;
    w3 = uint32_t(p);
}

GWF_INLINE void next_philox_key(uint32_t& key0, uint32_t& key1) {
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
}

// In (0, 1), from 32 bits.
GWF_INLINE double uniform_of(uint32_t word) { return (double(word) + 0.5) * 0x1p-32; }

// A turn of t / 2^32: the nearest of its quarters, and the angle from there, at most pi / 4.
template <class T> GWF_INLINE void split_turn(uint32_t t, T& quarter, T& angle) {
    const uint32_t nearest = (t + 0x20000000u) >> 30;
    quarter = T(nearest & 3);
    angle = T(int32_t(t - (nearest << 30))) * T(6.283185307179586 * 0x1p-32);
}

template <class V> struct NormalPair {
    V first, second;
};

// Box and Muller: from two words of 32 bits two normals, so none beyond 6.7 standard deviations.
template <class V> GWF_INLINE NormalPair<V> normal_pair(V uniform, V quarter, V angle) {
    using T = scalar_t<V>;
    const V radius = square_root(larger(V{}, V(log2_of(uniform) * T(-1.3862943611198906))));
    const V y = angle * angle;  // Taylor's series
    constexpr int terms = sizeof(T) == 4 ? 6 : 9;
    V s = splat(T(0)), c = splat(T(0));
    double factorial = 1;
    T sine[terms], cosine[terms];
    for (int k = 0; k < terms; k++) {
        cosine[k] = T((k % 2 ? -1 : 1) / factorial);
        factorial *= 2 * k + 1;
        sine[k] = T((k % 2 ? -1 : 1) / factorial);
        factorial *= 2 * k + 2;
    }
    for (int k = terms - 1; k >= 0; k--) {
        s = s * y + sine[k];
        c = c * y + cosine[k];
    }
    s *= angle;
    const auto odd = (quarter == T(1)) | (quarter == T(3));
    const V a = odd ? V(-s) : c, b = odd ? c : s;  // up to the sign of the half turn
    const auto back = quarter >= T(2);
    return {V(radius * (back ? V(-a) : a)), V(radius * (back ? V(-b) : b))};
}

}  // namespace gwf::GWF_ISA
