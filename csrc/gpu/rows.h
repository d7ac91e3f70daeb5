// The arithmetic of rows against a tile of sources: for the kernels, and for a CPU test of the same code.
#pragma once
#include <type_traits>

#include "gpu/device_math.h"
#include "gpu/grid.h"

#if defined(__CUDACC__) || defined(__HIPCC__)
#define GWF_PRAGMA(text) _Pragma(#text)
#define GWF_UNROLL(n) GWF_PRAGMA(unroll n)
#define GWF_UNROLL_ALL _Pragma("unroll")
#else
#define GWF_UNROLL(n)
#define GWF_UNROLL_ALL
#endif

namespace gwf::gpu {

// A kernel as terms coefficient * phi(ratio * q; parameter), q the squared distance of the scaled coordinates.
template <class T> struct Terms {
    int count;
    int profile[max_terms];
    T coefficient[max_terms], ratio[max_terms], parameter[max_terms];
};

// One profile, known when compiled; its coefficient is in the scale of the result and its ratio is 1.
template <class P> struct Single {
    template <class T> static constexpr int rows = rows_per_thread<T>;
    template <class T> static constexpr int unroll = sizeof(T) == 4 ? 4 : 1;
    // 2**-q is all that needs q: summed with the opposite sign, the minus costs no instruction.
    static constexpr bool opposite = std::is_same_v<P, Gaussian>;
    template <int K, class T> static GWF_DEVICE void jet(T q, const Terms<T>& terms, T* f) {
        P::template jet<K>(q, terms.parameter[0], NoShift{}, f);
    }
};

// Any terms: a branch a term, the same for all threads.
struct Mixture {
    template <class T> static constexpr int rows = rows_of_mixture;
    template <class T> static constexpr int unroll = 1;
    static constexpr bool opposite = false;
    template <int K, class T> static GWF_DEVICE void jet(T q, const Terms<T>& terms, T* f) {
        for (int k = 0; k <= K; k++) f[k] = T(0);
        for (int m = 0; m < terms.count; m++) {
            T g[K + 1] = {};
            switch (terms.profile[m]) {
#define GWF_CASE(id, P)                                                           \
    case id:                                                                      \
        P::template jet<K>(q * terms.ratio[m], terms.parameter[m], NoShift{}, g); \
        break;
                GWF_FOR_EACH_PROFILE(GWF_CASE)
#undef GWF_CASE
            }
            T factor = terms.coefficient[m];
            for (int k = 0; k <= K; k++, factor *= terms.ratio[m]) f[k] += factor * g[k];
        }
    }
};

// Adds one source [y, weight] to the sums of one row: K = 0: the value; K = 1: half the gradient.
template <class Profile, int D, int K, class T>
GWF_DEVICE void add_pair(const T* x, const T* source, bool skip, const Terms<T>& terms, T* sums) {
    T d[D], q = T(0), f[K + 1];
    GWF_UNROLL_ALL
    for (int k = 0; k < D; k++) {
        d[k] = x[k] - source[k];
        if constexpr (Profile::opposite)
            q = k == 0 ? -d[0] * d[0] : q - d[k] * d[k];
        else
            q = k == 0 ? d[0] * d[0] : q + d[k] * d[k];
    }
    if constexpr (Profile::opposite) q = -q;
    Profile::template jet<K>(q, terms, f);
    T weight = source[D];
    if (skip) f[K] = T(0);
    if constexpr (K == 0) {
        sums[0] += weight * f[0];
    } else {
        weight *= f[1];
        GWF_UNROLL_ALL
        for (int k = 0; k < D; k++) sums[k] += weight * d[k];
    }
}

// The sums of R rows, `stride` apart, over `count` packed sources. SELF: source `self - first_source + r * stride` of
// row r is the row itself and is left out.
template <class Profile, int D, int K, int R, bool SELF, class T>
GWF_DEVICE void add_tile(const T (&x)[R][D], const T* sources, int count, std::int64_t self, int stride,
                         const Terms<T>& terms, T (&totals)[R][K == 0 ? 1 : D]) {
    constexpr int outputs = K == 0 ? 1 : D, width = packed_width(D);
    constexpr int unroll = SELF ? 1 : Profile::template unroll<T>;
    T sums[R][outputs] = {};
    GWF_UNROLL(unroll)
    for (int j = 0; j < count; j++) {
        T source[width];
        GWF_UNROLL_ALL
        for (int k = 0; k < width; k++) source[k] = sources[j * width + k];
        GWF_UNROLL_ALL
        for (int r = 0; r < R; r++)
            add_pair<Profile, D, K>(x[r], source, SELF && j == self + std::int64_t(r) * stride, terms, sums[r]);
    }
    // Sums of tiles, then of totals: rounding errors grow with the number of tiles only.
    GWF_UNROLL_ALL
    for (int r = 0; r < R; r++)
        for (int k = 0; k < outputs; k++) totals[r][k] += sums[r][k];
}

}  // namespace gwf::gpu
