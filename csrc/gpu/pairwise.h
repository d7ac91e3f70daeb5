// Sums over sources on a GPU: raw pointers, sizes and a stream.
#pragma once
#include <cstdint>

namespace gwf::gpu {

struct Term {
    int profile;
    double coefficient, ratio, parameter;
};

// Coordinates are centred and scaled, sources packed as [y_0 .. y_{D-1}, weight, padding] (grid.h, packed_width) and
// padded with zeros to whole tiles.
struct Request {
    const void* x;                  // [batch, n, dim]
    const void* sources;            // [batch, m_padded, packed_width(dim)]
    const void* base;               // [batch, n, dim] or null: added to the result (gradient only, one split)
    void* out;                      // [splits, batch, n] or [splits, batch, n, dim]; may be base
    const std::int64_t* x_lengths;  // [batch] or null
    const std::int64_t* y_lengths;  // [batch] or null
    std::int64_t batch, n, m_padded;
    int dim, splits;  // ranges of the sources, summed apart
    bool gradient, exclude_self;
    double scale;  // the result is base + scale * sum
    const Term* terms;
    int term_count;
};

// 0; a positive code of the runtime; or a negative one of grid.h.
int rows_float(const Request& request, void* stream);
int rows_double(const Request& request, void* stream);
const char* error_text(int code);

}  // namespace gwf::gpu
