// The squared MMD and its gradients, from passes over the pairs of one instruction set: what Python would do between
// them takes longer than the passes where sets are small.
#pragma once
#include <algorithm>
#include <vector>

#include "pairwise/pairwise.h"

namespace gwf {

// a' Kxx a + b' Kyy b - 2 a' Kxy b; unbiased: without diagonals, and scaled by s^2 / (s^2 - |a|^2) with s the sum of
// the weights. Arrays are contiguous.
template <class T> struct MmdCall {
    std::vector<Term> kernel;
    int64_t batch, rows, columns, dim;
    const T *x, *y;  // [B, N, D], [B, M, D]
    const T *a, *b;  // [B, N], [B, M]; null = 1 / N, 1 / M
    bool unbiased;
    T* value;                    // [B]
    T *x_gradient, *y_gradient;  // null = not wanted
    T *a_gradient, *b_gradient;
};

template <class T> class Mmd {
  public:
    using Run = void (*)(const PairwiseCall<T>&);
    Mmd(const MmdCall<T>& call, Run run) : call_(call), run_(run) {}

    void compute() {
        const int64_t B = call_.batch, N = call_.rows, M = call_.columns;
        const std::vector<T> a = weights(call_.a, B, N), b = weights(call_.b, B, M);
        const bool x_slope = call_.x_gradient, y_slope = call_.y_gradient;
        const Rows xx = rows(call_.x, N, call_.x, N, a, call_.unbiased, x_slope);
        const Rows yy = rows(call_.y, M, call_.y, M, b, call_.unbiased, y_slope);
        const Rows xy = rows(call_.x, N, call_.y, M, b, false, x_slope);
        const Rows yx = y_slope || call_.b_gradient ? rows(call_.y, M, call_.x, N, a, false, y_slope) : Rows{};
        for (int64_t k = 0; k < B; k++) {
            const Diagonal of_x(&a[size_t(k * N)], N, call_.unbiased), of_y(&b[size_t(k * M)], M, call_.unbiased);
            const double axx = dot(a, xx.sums, k, N), byy = dot(b, yy.sums, k, M), axy = dot(a, xy.sums, k, N);
            call_.value[k] = T(of_x.scale * axx + of_y.scale * byy - 2 * axy);
            differentiate(k, N, of_x, axx, a, xx, xy, call_.x_gradient, call_.a_gradient);
            differentiate(k, M, of_y, byy, b, yy, yx, call_.y_gradient, call_.b_gradient);
        }
    }

  private:
    struct Rows {
        std::vector<T> sums, slopes;  // [B, N], [B, N, D]
    };
    // The factor of a' K a without its diagonal, and what it needs for its gradient.
    struct Diagonal {
        double scale = 1, sum = 0, squares = 0, left = 1;
        bool dropped;
        Diagonal(const T* a, int64_t count, bool unbiased) : dropped(unbiased) {
            for (int64_t i = 0; unbiased && i < count; i++) sum += double(a[i]), squares += double(a[i]) * double(a[i]);
            if (!unbiased) return;
            left = sum * sum - squares;
            scale = sum * sum / left;
        }
        double slope(double weight) const { return dropped ? 2 * sum * (sum * weight - squares) / (left * left) : 0; }
    };

    const MmdCall<T>& call_;
    Run run_;

    static std::vector<T> weights(const T* given, int64_t batch, int64_t count) {
        const auto size = size_t(batch * count);
        return given ? std::vector<T>(given, given + size) : std::vector<T>(size, T(1) / T(count));
    }

    // sum_j b_j k_ij and, if wanted, its gradients.
    Rows rows(const T* x, int64_t n, const T* y, int64_t m, const std::vector<T>& b, bool apart, bool slopes) const {
        Rows out;
        out.sums.resize(size_t(call_.batch * n));
        if (slopes) out.slopes.resize(size_t(call_.batch * n * call_.dim));
        PairwiseCall<T> call{};
        call.reduction = slopes ? Reduction::sum_gradient : Reduction::sum;
        call.kernel = call_.kernel;
        call.batch = call_.batch, call.rows = n, call.columns = m, call.dim = call_.dim, call.channels = 1;
        call.x = x, call.y = y, call.b = b.data();
        call.exclude_self = apart;
        call.out = out.sums.data();
        call.out2 = slopes ? out.slopes.data() : nullptr;
        run_(call);
        return out;
    }

    // In double: three such sums cancel.
    static double dot(const std::vector<T>& a, const std::vector<T>& sums, int64_t k, int64_t count) {
        double total = 0;
        for (int64_t i = k * count; i < (k + 1) * count; i++) total += double(a[size_t(i)]) * double(sums[size_t(i)]);
        return total;
    }

    void differentiate(int64_t k, int64_t count, const Diagonal& own, double form, const std::vector<T>& a,
                       const Rows& within, const Rows& across, T* points, T* weights) const {
        for (int64_t i = k * count; i < (k + 1) * count; i++) {
            const double weight = double(a[size_t(i)]);
            for (int64_t at = i * call_.dim; points && at < (i + 1) * call_.dim; at++)
                points[at] =
                    T(2 * weight * (own.scale * double(within.slopes[size_t(at)]) - double(across.slopes[size_t(at)])));
            if (weights)
                weights[i] = T(2 * (own.scale * double(within.sums[size_t(i)]) - double(across.sums[size_t(i)])) +
                               own.slope(weight) * form);
        }
    }
};

}  // namespace gwf
