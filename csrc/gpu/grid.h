// Host-side arithmetic of a launch: plain C++, tested on the CPU at sizes that no machine holds.
#pragma once
#include <cstdint>

namespace gwf::gpu {

constexpr int threads = 128;  // of a block
constexpr int tile = 128;     // sources in shared memory at a time: one a thread
constexpr int max_terms = 8;  // of a mixture
constexpr std::int64_t max_blocks = (std::int64_t(1) << 31) - 1;

// Rows a thread keeps in registers: each source read from shared memory serves that many pairs.
template <class T> constexpr int rows_per_thread = sizeof(T) == 4 ? 8 : 4;

// Numbers of a packed source [coordinates, weight, padding]: whole vector loads.
constexpr int packed_width(int dim) { return dim == 1 ? 2 : dim <= 3 ? 4 : 8; }

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }

enum Problem : int {  // negative: not an error code of the runtime
    ok = 0,
    bad_dim = -1,
    bad_size = -2,
    bad_terms = -3,
    too_many_blocks = -4,
};

inline const char* describe(int problem) {
    switch (problem) {
        case bad_dim:
            return "dim must be 1, 2, 3 or 4";
        case bad_size:
            return "sizes must be at least 0, and the padded number of sources a multiple of the tile";
        case bad_terms:
            return "a kernel has 1 to 8 terms of known profiles";
        case too_many_blocks:
            return "more rows than one launch can cover (2^31 - 1 blocks)";
        default:
            return "unknown problem";
    }
}

struct Grid {
    std::int64_t row_blocks;  // of one batch
    std::int64_t blocks;      // of the launch
    int problem;
};

// One block for each batch and each run of threads * rows rows.
constexpr Grid row_grid(std::int64_t batch, std::int64_t n, std::int64_t m_padded, int dim, int rows) {
    if (dim < 1 || dim > 4) return {0, 0, bad_dim};
    if (batch < 0 || n < 0 || m_padded < 0 || m_padded % tile != 0) return {0, 0, bad_size};
    const std::int64_t row_blocks = ceil_div(n, std::int64_t(threads) * rows);
    if (batch != 0 && row_blocks > max_blocks / batch) return {row_blocks, 0, too_many_blocks};
    return {row_blocks, row_blocks * batch, ok};
}

// Which batch and which first row a block has.
struct Place {
    std::int64_t batch, first_row;
};
constexpr Place place(std::int64_t block, std::int64_t row_blocks, int rows) {
    return {block / row_blocks, block % row_blocks * threads * rows};
}

}  // namespace gwf::gpu
