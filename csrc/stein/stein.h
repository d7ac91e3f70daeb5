// The kernel Stein discrepancy, as the rest of the library sees it: pointers and sizes.
#pragma once
#include <cstdint>
#include <vector>

#include "pairwise/pairwise.h"

namespace gwf {

// With d = x_i - x_j, phi the kernel as a function of r^2 and ' its derivative in that,
//     U_ij = phi s_i.s_j - 2 phi' ((s_i - s_j).d + D) - 4 r^2 phi''.
// Arrays are contiguous, with one leading batch dimension.
template <class T> struct SteinCall {
    std::vector<Term> kernel;
    int64_t batch, points, dim;
    const T* x;      // [B, N, D]
    const T* score;  // [B, N, D]
    bool diagonal;   // whether pairs i = j count
    double* total;   // [B]        sum_ij U_ij; null = not wanted
    T* x_gradient;   // [B, N, D]  the derivatives of that sum; both null = not wanted
    T* score_gradient;
};

}  // namespace gwf
