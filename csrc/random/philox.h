// Random numbers from counters, a batch at a time. Element i of (seed, iteration, stream) is the same whoever asks, in
// whatever order, so that every engine sees the same batches.
#pragma once
#include <algorithm>

#include "simd/math.h"
// after the functions that it uses
#include "random/counters.h"

namespace gwf::GWF_ISA {

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
        for (int l = 0; l < philox_lanes; l++)
            philox_round(key0, key1, b.word[0][l], b.word[1][l], b.word[2][l], b.word[3][l]);
        next_philox_key(key0, key1);
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
            out[i + k] = T(uniform_of(b.word[k / philox_lanes][k % philox_lanes]));
    }
}

template <class T> GWF_INLINE void normal_pairs(const uint32_t* u, const uint32_t* t, T* cosines, T* sines) {
    alignas(64) T uniform[philox_lanes], quarter[philox_lanes], angle[philox_lanes];
    for (int l = 0; l < philox_lanes; l++) {
        uniform[l] = T(uniform_of(u[l]));
        split_turn(t[l], quarter[l], angle[l]);
    }
    for (int l = 0; l < philox_lanes; l += lanes<T>) {
        const auto pair = normal_pair<vec<T>>(load(uniform + l), load(quarter + l), load(angle + l));
        store(cosines + l, pair.first);
        store(sines + l, pair.second);
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
