// Host-side arithmetic of a launch: plain C++, tested on the CPU at sizes that no machine holds.
#pragma once
#include <cstddef>
#include <cstdint>

namespace gwf::gpu {

constexpr int threads = 128;  // of a block
constexpr int tile = 128;     // sources in shared memory at a time: one a thread
constexpr int max_terms = 8;  // of a mixture
constexpr std::int64_t max_blocks = (std::int64_t(1) << 31) - 1;

// Rows a thread keeps in registers: each source read from shared memory serves that many pairs.
template <class T> constexpr int rows_per_thread = sizeof(T) == 4 ? 8 : 4;

constexpr int rows_of_mixture = 2;  // the switch over profiles is long: few copies of it

// Rows a thread keeps for a kernel of so many terms, in numbers of so many bytes.
constexpr int rows_of(std::size_t terms, std::size_t bytes) {
    return terms > 1 ? rows_of_mixture : bytes == 4 ? rows_per_thread<float> : rows_per_thread<double>;
}

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
            return "sizes must be at least 0, splits at least 1, and the padded sources a multiple of the tile";
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

// One block for each batch, each run of threads * rows rows, and each of the ranges that sources are split into.
constexpr Grid row_grid(std::int64_t batch, std::int64_t n, std::int64_t m_padded, int dim, int rows, int splits) {
    if (dim < 1 || dim > 4) return {0, 0, bad_dim};
    if (batch < 0 || n < 0 || m_padded < 0 || m_padded % tile != 0 || splits < 1) return {0, 0, bad_size};
    const std::int64_t row_blocks = ceil_div(n, std::int64_t(threads) * rows);
    if (batch != 0 && row_blocks > max_blocks / batch / splits) return {row_blocks, 0, too_many_blocks};
    return {row_blocks, row_blocks * batch * splits, ok};
}

// Which range of the sources, which batch and which first row a block has.
struct Place {
    std::int64_t split, batch, first_row;
};
constexpr Place place(std::int64_t block, std::int64_t row_blocks, std::int64_t batch, int rows) {
    const std::int64_t run = block / row_blocks;
    return {run / batch, run % batch, block % row_blocks * threads * rows};
}

// The sources [begin, end) of a range: whole tiles, but for the end of all.
struct Range {
    std::int64_t begin, end;
};
constexpr Range source_range(std::int64_t columns, std::int64_t split, int splits) {
    const std::int64_t share = ceil_div(ceil_div(columns, tile), splits) * tile, begin = split * share;
    return {begin, begin + share < columns ? begin + share : columns};
}

}  // namespace gwf::gpu
