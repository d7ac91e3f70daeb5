// The near field of a fast summation, as the rest of the library sees it: pointers and sizes.
#pragma once
#include <cstdint>
#include <vector>

#include "pairwise/pairwise.h"

namespace gwf {

// Sums over the sources within a radius of each target of  phi(q) - phi(Q(q)),  q = |x - y|^2: what a Fourier series,
// which represents phi(Q(q)), leaves out. Q is the square of the smooth stand-in for the distance,
//     rho(r) = radius * sum_k binom(1/2, k) (r^2 / radius^2 - 1)^k,   k = 0 .. degree;
// with degree = 0 nothing is subtracted: a kernel that is cut off at the radius. Sources are sorted by the cells of a
// grid, row-major, and every target knows its cell.
struct NearFieldCall {
    std::vector<Term> kernel;
    int order, dim, degree;  // derivatives 0, 1, 2; dimensions 1, 2, 3
    double radius;
    int64_t targets, stride;
    const double* x;        // [targets][dim]
    const int64_t* cell;    // [targets]
    const double* y;        // [dim][stride], sources sorted by cell, and at least 8 numbers more
    const double* weights;  // [stride], likewise
    const int64_t* start;   // [cells + 1], of each cell among the sources
    int64_t grid[3];        // cells in each dimension, the last being the last; 1 before the first
    int64_t reach;          // neighbours in each direction that cover the radius
    double* out;            // [targets][components]: 1; D; or the D (D + 1) / 2 second derivatives, a <= b
};

#if defined(__x86_64__)
void near_field_avx512(const NearFieldCall& call);
void near_field_avx2(const NearFieldCall& call);
#endif
void near_field_baseline(const NearFieldCall& call);

}  // namespace gwf
