// Projection, sorting and back-projection, a tile of directions at a time: nothing of the size P x N is stored.
// Every number is added in an order that does not depend on the number of threads.
#pragma once
#include <limits>
#include <memory>

#include "sliced/power.h"
#include "team.h"

namespace gwf::GWF_ISA {

inline constexpr int tile_width = 32;  // directions

template <class T> class SlicedTiles {
  public:
    explicit SlicedTiles(const SlicedCall<T>& call) : call_(call) {
        const int64_t fits = (int64_t(1) << 24) / std::max<int64_t>(call.rows + call.columns, 1);
        width_ = int(std::clamp<int64_t>(fits, 4, tile_width));
        padded_ = (call.dim + lanes<T> - 1) / lanes<T> * lanes<T>;
        columns_.resize(size_t(call.dim) * tile_width);
        rows_.resize(size_t(padded_) * tile_width);
        for (auto& [tile, count] : {std::pair{&x_, call.rows}, {&y_, call.columns}})
            tile->resize(size_t(width_ * count));
        if (call.x_tangent) {
            x_tangent_.resize(x_.size());
            y_tangent_.resize(y_.size());
        }
        if (wants_potentials()) {
            x_potential_.resize(x_.size());
            y_potential_.resize(y_.size());
        }
    }

    // Called by every thread of a team, with lines of its own.
    void run(Team& team, int64_t set, SortedSide<T>& a, SortedSide<T>& b, PowerLine<T>& power) {
        const SlicedCall<T>& c = call_;
        const int64_t at_x = set * c.rows, at_y = set * c.columns;
        const int64_t rows = c.row_counts ? c.row_counts[set] : c.rows;
        const int64_t columns = c.column_counts ? c.column_counts[set] : c.columns;
        for (int64_t first = 0; first < c.directions; first += width_) {
            const int count = int(std::min<int64_t>(width_, c.directions - first));
            team.once([&] { pack(c.theta + first * c.dim, count); });
            project(team, c.x + at_x * c.dim, rows, count, x_.data());
            project(team, c.y + at_y * c.dim, columns, count, y_.data());
            if (c.x_tangent) {
                project(team, c.x_tangent + at_x * c.dim, rows, count, x_tangent_.data());
                project(team, c.y_tangent + at_y * c.dim, columns, count, y_tangent_.data());
            }
            team.loop(count, 1, [&](int64_t t) {
                breathe(20 * double(rows + columns));
                T *px = x_.data() + t * rows, *py = y_.data() + t * columns;
                a.sort(px, c.x_tangent ? x_tangent_.data() + t * rows : nullptr,
                       c.row_weights ? c.row_weights + at_x : nullptr, rows);
                b.sort(py, c.x_tangent ? y_tangent_.data() + t * columns : nullptr,
                       c.column_weights ? c.column_weights + at_y : nullptr, columns);
                a.want_potential(wants_potentials());
                b.want_potential(wants_potentials());
                const double value = along_line(a, b, power);
                if (c.values) c.values[set * c.directions + first + t] = value;
                if (c.x_gradient) a.scatter(px);
                if (c.y_gradient) b.scatter(py);
                if (wants_potentials()) {
                    a.scatter_potential(x_potential_.data() + t * rows);
                    b.scatter_potential(y_potential_.data() + t * columns);
                }
            });
            if (c.x_gradient) project_back(team, x_.data(), rows, count, c.x_gradient + at_x * c.dim, first == 0);
            if (c.y_gradient) project_back(team, y_.data(), columns, count, c.y_gradient + at_y * c.dim, first == 0);
            if (wants_potentials()) {
                add_up(team, x_potential_.data(), rows, count, c.x_potential + at_x, first == 0);
                add_up(team, y_potential_.data(), columns, count, c.y_potential + at_y, first == 0);
            }
        }
        team.once([&] {
            clear(c.x_gradient, c.dim, at_x + rows, at_x + c.rows);
            clear(c.y_gradient, c.dim, at_y + columns, at_y + c.columns);
            clear(c.x_potential, 1, at_x + rows, at_x + c.rows);
            clear(c.y_potential, 1, at_y + columns, at_y + c.columns);
        });
    }

  private:
    static constexpr int across = tile_width / lanes<T>;                               // vectors of a tile
    static constexpr int deep = std::max(1, (vector_bytes == 64 ? 24 : 12) / across);  // rows at a time
    static constexpr int64_t block = 480;                                              // rows of a work item

    void pack(const T* theta, int count) {
        std::fill(columns_.begin(), columns_.end(), T(0));
        std::fill(rows_.begin(), rows_.end(), T(0));
        for (int t = 0; t < count; t++)
            for (int64_t d = 0; d < call_.dim; d++) {
                columns_[d * tile_width + t] = theta[t * call_.dim + d];
                rows_[t * padded_ + d] = theta[t * call_.dim + d];
            }
    }

    bool wants_potentials() const { return call_.x_potential; }

    double along_line(SortedSide<T>& a, SortedSide<T>& b, PowerLine<T>& power) {
        switch (call_.kind) {
            case SlicedKind::energy:
                return energy(a, b, call_.scale);
            case SlicedKind::power:
                return power.run(a, b, call_);
            default:
                return wasserstein(a, b, call_.power, call_.scale);
        }
    }

    template <class U> static void clear(U* out, int64_t width, int64_t first, int64_t last) {
        if (out) std::fill(out + first * width, out + last * width, U(0));
    }

    // out[i] (+)= scale sum_t potential[t, i]
    void add_up(Team& team, const double* potential, int64_t n, int count, double* out, bool fresh) {
        team.loop(n, block, [&](int64_t first) {
            for (int64_t i = first; i < std::min(n, first + block); i++) {
                double sum = fresh ? 0.0 : out[i];
                for (int t = 0; t < count; t++) sum += call_.scale * potential[t * n + i];
                out[i] = sum;
            }
        });
    }

    // out[t, i] = sum_d x[i, d] theta[t, d]
    void project(Team& team, const T* x, int64_t n, int count, T* out) {
        const int64_t dim = call_.dim;
        team.loop(n, block, [&](int64_t first) {
            breathe(double(block) * double(dim) * tile_width / 8);
            for (int64_t i = first; i < std::min(n, first + block); i += deep) {
                const T* row[deep];
                for (int r = 0; r < deep; r++) row[r] = x + std::min(i + r, n - 1) * dim;
                vec<T> sum[deep][across];
#pragma GCC unroll 32
                for (int r = 0; r < deep; r++)
#pragma GCC unroll 8
                    for (int v = 0; v < across; v++) sum[r][v] = vec<T>{};
                for (int64_t d = 0; d < dim; d++) {
                    vec<T> direction[across];
#pragma GCC unroll 8
                    for (int v = 0; v < across; v++) direction[v] = load(&columns_[d * tile_width + v * lanes<T>]);
#pragma GCC unroll 32
                    for (int r = 0; r < deep; r++) {
                        const vec<T> value = splat(row[r][d]);
#pragma GCC unroll 8
                        for (int v = 0; v < across; v++) sum[r][v] += value * direction[v];
                    }
                }
                alignas(64) T buffer[deep][tile_width];
                for (int r = 0; r < deep; r++)
                    for (int v = 0; v < across; v++) store(&buffer[r][v * lanes<T>], sum[r][v]);
                const int valid = int(std::min<int64_t>(deep, n - i));
                for (int t = 0; t < count; t++)
                    for (int r = 0; r < valid; r++) out[t * n + i + r] = buffer[r][t];
            }
        });
    }

    // out[i, d] (+)= sum_t g[t, i] theta[t, d]
    void project_back(Team& team, const T* g, int64_t n, int count, T* out, bool fresh) {
        team.loop(n, block, [&](int64_t first) {
            const int64_t end = std::min(n, first + block);
            breathe(double(block) * double(padded_) * count / 8);
            for (int64_t i = first; i < end; i += 6) {
                int64_t d = 0;
                for (; d + 4 * lanes<T> <= padded_; d += 4 * lanes<T>)
                    back_block<4>(g, n, count, out, fresh, i, end, d);
                for (; d < padded_; d += lanes<T>) back_block<1>(g, n, count, out, fresh, i, end, d);
            }
        });
    }

    template <int V>
    void back_block(const T* g, int64_t n, int count, T* out, bool fresh, int64_t i, int64_t end, int64_t d) {
        const int64_t dim = call_.dim;
        const int valid = int(std::min<int64_t>(6, end - i));
        const int64_t wide = std::min<int64_t>(V * lanes<T>, dim - d);
        const T* from[6];
        vec<T> sum[6][V];
        for (int r = 0; r < 6; r++) from[r] = g + std::min(i + r, n - 1);
        alignas(64) T buffer[V * lanes<T>] = {};
#pragma GCC unroll 6
        for (int r = 0; r < 6; r++) {
            if (!fresh && r < valid) std::memcpy(buffer, out + (i + r) * dim + d, size_t(wide) * sizeof(T));
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sum[r][v] = fresh ? vec<T>{} : load(buffer + v * lanes<T>);
        }
        for (int t = 0; t < count; t++) {
            vec<T> direction[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) direction[v] = load(&rows_[t * padded_ + d + v * lanes<T>]);
#pragma GCC unroll 6
            for (int r = 0; r < 6; r++) {
                const vec<T> value = splat(from[r][t * n]);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) sum[r][v] += value * direction[v];
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < 6; r++) {
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) store(buffer + v * lanes<T>, sum[r][v]);
            if (r < valid) std::memcpy(out + (i + r) * dim + d, buffer, size_t(wide) * sizeof(T));
        }
    }

    const SlicedCall<T>& call_;
    int width_;
    int64_t padded_;
    std::vector<T> columns_, rows_;  // directions, [dim, tile] and [tile, padded dim]
    std::vector<T> x_, y_, x_tangent_, y_tangent_;
    std::vector<double> x_potential_, y_potential_;
};

template <class T> void run_sliced(const SlicedCall<T>& call) {
    const int threads = available_threads();
    if (call.batch == 1) {
        SlicedTiles<T> tiles(call);
        const int64_t work = (call.rows + call.columns) * call.directions;
        Team::form(work > 40000 ? threads : 1, [&](Team& team, int) {
            SortedSide<T> a, b;
            PowerLine<T> power;
            tiles.run(team, 0, a, b, power);
        });
        return;
    }
    Team::form(threads, [&](Team& team, int) {
        team.loop(call.batch, 1, [&](int64_t set) {
            Team::form(1, [&](Team& alone, int) {
                SlicedTiles<T> tiles(call);
                SortedSide<T> a, b;
                PowerLine<T> power;
                tiles.run(alone, set, a, b, power);
            });
        });
    });
}

}  // namespace gwf::GWF_ISA
