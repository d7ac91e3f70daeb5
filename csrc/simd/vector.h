// SIMD vectors: GCC vector types and the few operations that have no operator.
// Compiled once per instruction set; GWF_ISA names the namespace, so that the copies never mix.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define GWF_INLINE inline __attribute__((always_inline))

namespace gwf::GWF_ISA {

#if defined(__AVX512F__) && defined(__AVX512DQ__)
inline constexpr int vector_bytes = 64;
#elif defined(__AVX2__) && defined(__FMA__)
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;
#endif

template <class T> using integer_of = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T> struct vector_types {
    typedef T vec __attribute__((vector_size(vector_bytes)));
    typedef T unaligned __attribute__((vector_size(vector_bytes), aligned(sizeof(T)), may_alias));
    typedef integer_of<T> bits __attribute__((vector_size(vector_bytes)));
    typedef std::make_unsigned_t<integer_of<T>> unsigned_bits __attribute__((vector_size(vector_bytes)));
};

template <class T> using vec = typename vector_types<T>::vec;
template <class T> using bits = typename vector_types<T>::bits;
template <class T> using unsigned_bits = typename vector_types<T>::unsigned_bits;
template <class T> inline constexpr int lanes = vector_bytes / int(sizeof(T));
template <class V> using scalar_t = std::remove_cvref_t<decltype(std::declval<V>()[0])>;

template <class T> GWF_INLINE vec<T> splat(T value) { return value - vec<T>{}; }
template <class T> GWF_INLINE vec<T> load(const T* p) { return *(const typename vector_types<T>::unaligned*)p; }
template <class T> GWF_INLINE void store(T* p, vec<T> v) { *(typename vector_types<T>::unaligned*)p = v; }

// While it lives, results too small for a normal number are 0 on this thread. Arithmetic on denormal numbers is some
// hundred cycles an operation, and a narrow kernel makes little else.
class FlushDenormals {
  public:
#if defined(__x86_64__)
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // flush to zero, denormals are zero
    ~FlushDenormals() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#else
    FlushDenormals() {}
#endif
  public:
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;
};

// A constant that the compiler must keep in a register instead of loading it anew at each use.
template <class T> GWF_INLINE vec<T> pinned(T value) {
    vec<T> v = splat(value);
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(__x86_64__)
    asm("" : "+x"(v));
#endif
    return v;
}

template <class T> GWF_INLINE bits<T> as_bits(vec<T> v) { return (bits<T>)v; }
template <class T> GWF_INLINE unsigned_bits<T> as_unsigned(vec<T> v) { return (unsigned_bits<T>)v; }

// v as it is stored: a product is not fused with the sum that it goes into, and comes out the same everywhere.
template <class V> GWF_INLINE V rounded(V v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(__x86_64__)
    asm("" : "+x"(v));
#endif
    return v;
}

template <class V> inline constexpr scalar_t<V> infinite = std::numeric_limits<scalar_t<V>>::infinity();

// smaller(a, b) and larger(a, b) return b where either is NaN (the x86 rule): put the data second to propagate it.
#if defined(__AVX512F__)
GWF_INLINE vec<float> smaller(vec<float> a, vec<float> b) { return _mm512_min_ps(a, b); }
GWF_INLINE vec<float> larger(vec<float> a, vec<float> b) { return _mm512_max_ps(a, b); }
GWF_INLINE vec<double> smaller(vec<double> a, vec<double> b) { return _mm512_min_pd(a, b); }
GWF_INLINE vec<double> larger(vec<double> a, vec<double> b) { return _mm512_max_pd(a, b); }
GWF_INLINE vec<float> square_root(vec<float> a) { return _mm512_sqrt_ps(a); }
GWF_INLINE vec<double> square_root(vec<double> a) { return _mm512_sqrt_pd(a); }
// value where test >= bound or test is NaN, else 0
GWF_INLINE vec<float> zero_below(vec<float> value, vec<float> test, vec<float> bound) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(test, bound, _CMP_NLT_UQ), value);
}
GWF_INLINE vec<double> zero_below(vec<double> value, vec<double> test, vec<double> bound) {
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(test, bound, _CMP_NLT_UQ), value);
}
#elif defined(__AVX2__)
GWF_INLINE vec<float> smaller(vec<float> a, vec<float> b) { return _mm256_min_ps(a, b); }
GWF_INLINE vec<float> larger(vec<float> a, vec<float> b) { return _mm256_max_ps(a, b); }
GWF_INLINE vec<double> smaller(vec<double> a, vec<double> b) { return _mm256_min_pd(a, b); }
GWF_INLINE vec<double> larger(vec<double> a, vec<double> b) { return _mm256_max_pd(a, b); }
GWF_INLINE vec<float> square_root(vec<float> a) { return _mm256_sqrt_ps(a); }
GWF_INLINE vec<double> square_root(vec<double> a) { return _mm256_sqrt_pd(a); }
GWF_INLINE vec<float> zero_below(vec<float> value, vec<float> test, vec<float> bound) {
    return _mm256_and_ps(_mm256_cmp_ps(test, bound, _CMP_NLT_UQ), value);
}
GWF_INLINE vec<double> zero_below(vec<double> value, vec<double> test, vec<double> bound) {
    return _mm256_and_pd(_mm256_cmp_pd(test, bound, _CMP_NLT_UQ), value);
}
#else
template <class V> GWF_INLINE V smaller(V a, V b) { return a < b ? a : b; }
template <class V> GWF_INLINE V larger(V a, V b) { return a > b ? a : b; }
template <class V> GWF_INLINE V square_root(V a) {
    V r;
    for (int i = 0; i < int(sizeof(V) / sizeof(a[0])); i++) r[i] = __builtin_sqrt(a[i]);
    return r;
}
template <class V> GWF_INLINE V zero_below(V value, V test, V bound) { return test < bound ? V{} : value; }
#endif

// Whether a < b in any lane.
template <class V> GWF_INLINE bool any_less(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(a[0]) == 4)
        return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
    else
        return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ);
#elif defined(__AVX2__)
    if constexpr (sizeof(a[0]) == 4)
        return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ));
    else
        return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_LT_OQ));
#else
    bool any = false;
    for (int i = 0; i < int(sizeof(V) / sizeof(a[0])); i++) any |= a[i] < b[i];
    return any;
#endif
}

// a * b + c on one number, rounded as the vectors round it.
template <class T> GWF_INLINE T multiply_add(T a, T b, T c) {
#if defined(__FMA__)
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
}

template <class T> GWF_INLINE T horizontal_sum(vec<T> v) {
    T s[lanes<T>];
    store(s, v);
    for (int width = lanes<T> / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) s[i] += s[i + width];
    return s[0];
}

}  // namespace gwf::GWF_ISA
