// What the threads of a block do together, other than products: sums in a fixed order, and draws from counters.
#pragma once
#include "gpu/products.h"
#include "mlp/functions.h"
#include "random/counters.h"

namespace gwf::gpu {

// The sum over a warp, in all its lanes.
template <class T> __device__ __forceinline__ T warp_sum(T v) {
    for (int bit = 16; bit > 0; bit /= 2) v += exchanged(v, bit);
    return v;
}

// The sum over the block, in all its threads; `places` has a number for each warp.
template <class T> __device__ T block_sum(T v, T* places) {
    const int warps = int(blockDim.x) / 32;
    v = warp_sum(v);
    __syncthreads();  // who reads an earlier sum
    if (threadIdx.x % 32 == 0) places[threadIdx.x / 32] = v;
    __syncthreads();
    T sum = 0;
    for (int w = 0; w < warps; w++) sum += places[w];
    return sum;
}

// Value and derivative of one of many functions: one copy of them, not one at each use.
template <bool objectives, class T> __device__ __noinline__ Jet<T> any_jet(Function f, T v, T p) {
    Jet<T> jet{};
    with_function<objectives>(f, [&](auto function) { jet = evaluate<function()>(v, p); });
    jet.second = T(0);  // unused: not computed
    return jet;
}

// The same, leaky units and the identity on the spot.
template <class T> __device__ __forceinline__ Jet<T> hidden_jet(Function f, T v, T p) {
    if (f == Function::leaky) return evaluate<Function::leaky>(v, p);
    if (f == Function::identity) return evaluate<Function::identity>(v, p);
    return any_jet<false>(f, v, p);
}

struct Words {
    std::uint32_t word[4];
};

__device__ __forceinline__ Words philox_words(std::uint64_t seed, std::uint32_t iteration, std::uint32_t stream,
                                              std::uint64_t block) {
    Words w{{std::uint32_t(block), std::uint32_t(block >> 32), iteration, stream}};
    std::uint32_t key0 = std::uint32_t(seed), key1 = std::uint32_t(seed >> 32);
    GWF_UNROLL_ALL
    for (int round = 0; round < 10; round++) {
        philox_round(key0, key1, w.word[0], w.word[1], w.word[2], w.word[3]);
        next_philox_key(key0, key1);
    }
    return w;
}

// Number i of a stream (philox.h), of those that are made of 64 bits, of 32 bits, and of pairs of 32 bits.
struct Draw {
    std::uint64_t seed;
    std::uint32_t iteration, stream;

    __device__ std::int64_t index(std::int64_t i, std::int64_t bound) const {
        constexpr std::int64_t group = 2 * philox_lanes;
        const Words w = philox_words(seed, iteration, stream, i / group * philox_lanes + i % philox_lanes);
        const bool second = i % group >= philox_lanes;
        const std::uint64_t high = second ? w.word[2] : w.word[0], low = second ? w.word[3] : w.word[1];
        return std::int64_t(__umul64hi(high << 32 | low, std::uint64_t(bound)));
    }
    __device__ double uniform(std::int64_t i) const {
        constexpr std::int64_t group = 4 * philox_lanes;
        const Words w = philox_words(seed, iteration, stream, i / group * philox_lanes + i % philox_lanes);
        const int which = int(i % group) / philox_lanes;
        return uniform_of(which < 2 ? w.word[which == 1] : w.word[2 + (which == 3)]);
    }
    template <class T> __device__ T normal(std::int64_t i) const {
        constexpr std::int64_t group = 4 * philox_lanes;
        const Words w = philox_words(seed, iteration, stream, i / group * philox_lanes + i % philox_lanes);
        const int which = int(i % group) / philox_lanes;
        const bool second = which >= 2;
        T quarter, angle;
        split_turn(second ? w.word[3] : w.word[1], quarter, angle);
        const auto pair = normal_pair<T>(T(uniform_of(second ? w.word[2] : w.word[0])), quarter, angle);
        return which % 2 ? pair.second : pair.first;
    }
};

}  // namespace gwf::gpu
