// Radix sort of numbers with their indices: least significant digit first, 11 bits a pass.
#pragma once
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "simd/vector.h"
#include "team.h"

namespace gwf::GWF_ISA {

// A number as an integer of the same order, with its index: the order is total, and equal numbers keep theirs.
template <class T> struct Keyed;

template <> struct Keyed<float> {
    uint64_t packed;
    static constexpr int bits = 32;
    static Keyed make(float value, uint32_t index) {
        const uint32_t u = std::bit_cast<uint32_t>(value);
        return {uint64_t(u ^ (uint32_t(int32_t(u) >> 31) | 0x80000000u)) << 32 | index};
    }
    uint64_t key() const { return packed >> 32; }
    uint32_t index() const { return uint32_t(packed); }
    float value() const {
        const uint32_t k = uint32_t(packed >> 32);
        return std::bit_cast<float>(k ^ (((k >> 31) - 1) | 0x80000000u));
    }
    bool operator<(const Keyed& other) const { return packed < other.packed; }
};

template <> struct Keyed<double> {
    uint64_t number;
    uint64_t place;
    static constexpr int bits = 64;
    static Keyed make(double value, uint32_t index) {
        const uint64_t u = std::bit_cast<uint64_t>(value);
        return {u ^ (uint64_t(int64_t(u) >> 63) | 0x8000000000000000u), index};
    }
    uint64_t key() const { return number; }
    uint32_t index() const { return uint32_t(place); }
    double value() const { return std::bit_cast<double>(number ^ (((number >> 63) - 1) | 0x8000000000000000u)); }
    bool operator<(const Keyed& other) const {
        return number != other.number ? number < other.number : place < other.place;
    }
};

template <class T> class Sorter {
  public:
    // The sorted pairs; they live until the next call.
    const Keyed<T>* sort(const T* values, int64_t n) {
        if (int64_t(front_.size()) < n) front_.resize(size_t(n)), back_.resize(size_t(n));
        Keyed<T>*from = front_.data(), *to = back_.data();
        if (n < small) {
            for (int64_t i = 0; i < n; i++) from[i] = Keyed<T>::make(values[i], uint32_t(i));
            std::sort(from, from + n);
            return from;
        }
        counts_.assign(size_t(passes) << digit_bits, 0);
        breathe(20 * double(n));
        for (int64_t i = 0; i < n; i++) {
            from[i] = Keyed<T>::make(values[i], uint32_t(i));
            const uint64_t key = from[i].key();
            for (int p = 0; p < passes; p++) counts_[size_t(p) << digit_bits | digit(key, p)]++;
        }
        for (int p = 0; p < passes; p++) {
            uint32_t* next = counts_.data() + (size_t(p) << digit_bits);
            if (int64_t(next[digit(from[0].key(), p)]) == n) continue;  // all have this digit
            breathe(20 * double(n));
            uint32_t sum = 0;
            for (int r = 0; r < 1 << digit_bits; r++) sum += std::exchange(next[r], sum);
            for (int64_t i = 0; i < n; i++) to[next[digit(from[i].key(), p)]++] = from[i];
            std::swap(from, to);
        }
        return from;
    }

  private:
    static constexpr int digit_bits = 11;
    static constexpr int passes = (Keyed<T>::bits + digit_bits - 1) / digit_bits;
    static constexpr int64_t small = 512;
    static size_t digit(uint64_t key, int pass) { return size_t(key >> (pass * digit_bits)) & ((1 << digit_bits) - 1); }

    std::vector<Keyed<T>> front_, back_;
    std::vector<uint32_t> counts_;
};

}  // namespace gwf::GWF_ISA
