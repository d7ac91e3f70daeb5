// Random numbers from counters: Philox4x32-10 (Salmon et al., SC 2011). Element i of (seed, iteration, stream) is the
// same whoever asks, in whatever order, so that every engine sees the same batches.
#pragma once
#include <algorithm>

#include "simd/math.h"

namespace gwf::GWF_ISA {

inline constexpr int philox_lanes = 16;  // blocks at a time, whatever the vectors: the order of the numbers is fixed

struct PhiloxBlocks {
    alignas(64) uint32_t word[4][philox_lanes];
};

// Blocks 16 group, ..., 16 group + 15.
GWF_INLINE PhiloxBlocks philox(uint64_t seed, uint32_t iteration, uint32_t stream, uint64_t group) {
    PhiloxBlocks b;
    for (int l = 0; l < philox_lanes; l++) {
        const uint64_t block = group * philox_lanes + uint64_t(l);
        b.word[0][l] = uint32_t(block);
        b.word[1][l] = uint32_t(block >> 32);
        b.word[2][l] = iteration;
        b.word[3][l] = stream;
    }
    uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; round++) {
        for (int l = 0; l < philox_lanes; l++) {
            const uint64_t p = uint64_t(0xD2511F53u) * b.word[0][l], q = uint64_t(0xCD9E8D57u) * b.word[2][l];
            const uint32_t a = uint32_t(q >> 32) ^ b.word[1][l] ^ key0, c = uint32_t(p >> 32) ^ b.word[3][l] ^ key1;
            b.word[0][l] = a;
            b.word[1][l] = uint32_t(q);
            b.word[2][l] = c;
            b.word[3][l] = uint32_t(p);
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return b;
}

// Uniform in 0 .. bound - 1, from 64 bits each.
inline void philox_indices(uint64_t seed, uint32_t iteration, uint32_t stream, int64_t count, int64_t bound,
                           int64_t* out) {
    for (int64_t i = 0; i < count; i += 2 * philox_lanes) {
        const PhiloxBlocks b = philox(seed, iteration, stream, uint64_t(i / (2 * philox_lanes)));
        for (int half = 0; half < 2; half++)
            for (int64_t l = 0; l < std::min<int64_t>(philox_lanes, count - i - half * philox_lanes); l++) {
                const uint64_t bits = uint64_t(b.word[2 * half][l]) << 32 | b.word[2 * half + 1][l];
                out[i + half * philox_lanes + l] =
                    int64_t((static_cast<unsigned __int128>(bits) * static_cast<unsigned __int128>(bound)) >> 64);
            }
    }
}

// In (0, 1), from 32 bits each.
template <class T> void philox_uniforms(uint64_t seed, uint32_t iteration, uint32_t stream, int64_t count, T* out) {
    constexpr int64_t group = 4 * philox_lanes;
    for (int64_t i = 0; i < count; i += group) {
        const PhiloxBlocks b = philox(seed, iteration, stream, uint64_t(i / group));
        for (int64_t k = 0; k < std::min(group, count - i); k++)
            out[i + k] = T((double(b.word[k / philox_lanes][k % philox_lanes]) + 0.5) * 0x1p-32);
    }
}

// Box and Muller: from two words of 32 bits two normals, so none beyond 6.7 standard deviations.
template <class T> GWF_INLINE void normal_pairs(const uint32_t* u, const uint32_t* t, T* cosines, T* sines) {
    alignas(64) T uniform[philox_lanes], angle[philox_lanes], turn[philox_lanes];
    for (int l = 0; l < philox_lanes; l++) {
        uniform[l] = T((double(u[l]) + 0.5) * 0x1p-32);
        const uint32_t quarter = (t[l] + 0x20000000u) >> 30;  // the nearest multiple of pi / 2
        turn[l] = T(quarter & 3);
        angle[l] = T(int32_t(t[l] - (quarter << 30))) * T(6.283185307179586 * 0x1p-32);
    }
    for (int l = 0; l < philox_lanes; l += lanes<T>) {
        const vec<T> radius =
            square_root(larger(vec<T>{}, vec<T>(log2_of(load(uniform + l)) * T(-1.3862943611198906))));
        const vec<T> x = load(angle + l), q = load(turn + l), y = x * x;  // |x| <= pi / 4: Taylor's series
        constexpr int terms = sizeof(T) == 4 ? 6 : 9;
        vec<T> s = splat(T(0)), c = splat(T(0));
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
        s *= x;
        const auto odd = (q == T(1)) | (q == T(3));
        const vec<T> a = odd ? vec<T>(-s) : c, b = odd ? c : s;  // up to the sign of the half turn
        const auto back = q >= T(2);
        store(cosines + l, vec<T>(radius * (back ? vec<T>(-a) : a)));
        store(sines + l, vec<T>(radius * (back ? vec<T>(-b) : b)));
    }
}

template <class T> void philox_normals(uint64_t seed, uint32_t iteration, uint32_t stream, int64_t count, T* out) {
    constexpr int64_t group = 4 * philox_lanes;
    for (int64_t i = 0; i < count; i += group) {
        const PhiloxBlocks b = philox(seed, iteration, stream, uint64_t(i / group));
        alignas(64) T normal[group];
        for (int half = 0; half < 2; half++)
            normal_pairs(b.word[2 * half], b.word[2 * half + 1], normal + 2 * half * philox_lanes,
                         normal + (2 * half + 1) * philox_lanes);
        std::copy_n(normal, std::min(group, count - i), out + i);
    }
}

}  // namespace gwf::GWF_ISA
