// Densities with closed forms, and the whitening of a Gaussian, on a tile of rows [rows][stride].
#pragma once
#include "primal_dual/tile.h"

namespace gwf::GWF_ISA {

// [rows][columns] to rows padded to whole vectors, and its transpose.
template <class T> struct PaddedMatrix {
    int64_t rows, columns, stride, transposed_stride;
    AlignedArray<T> plain, transposed;  // [rows][stride], [columns][transposed_stride]

    PaddedMatrix(const T* from, int64_t n, int64_t m)
        : rows(n),
          columns(m),
          stride(row_stride<T>(m)),
          transposed_stride(row_stride<T>(n)),
          plain(n * stride),
          transposed(m * transposed_stride) {
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < m; j++) {
                plain.data()[i * stride + j] = from[i * m + j];
                transposed.data()[j * transposed_stride + i] = from[i * m + j];
            }
    }
};

// w = L^-1 (x - mean), with N(mean, L L') the Gaussian.
template <class T> class Whitening {
  public:
    Whitening(const T* mean, const T* inverse, int64_t dim) : matrix_(inverse, dim, dim), shift_(matrix_.stride) {
        for (int64_t i = 0; i < dim; i++) {
            double sum = 0;
            for (int64_t j = 0; j < dim; j++) sum += double(inverse[i * dim + j]) * double(mean[j]);
            shift_.data()[i] = T(-sum);
        }
    }
    void apply(const T* x, int64_t rows, T* w) const {
        multiply<false>(x, matrix_.stride, matrix_.transposed.data(), matrix_.stride, matrix_.rows, w, matrix_.stride,
                        rows, padded_to_lanes<T>(matrix_.rows), shift_.data());
    }
    // A cotangent of w to one of x, added.
    void add_pullback(const T* u, int64_t rows, T* g) const {
        multiply<false>(u, matrix_.stride, matrix_.plain.data(), matrix_.stride, matrix_.rows, g, matrix_.stride, rows,
                        padded_to_lanes<T>(matrix_.rows), nullptr, true);
    }

  private:
    PaddedMatrix<T> matrix_;
    AlignedArray<T> shift_;
};

template <class T> class TileDensity {
  public:
    TileDensity(const Density<T>& density, int64_t dim) : density_(density), dim_(dim), stride_(row_stride<T>(dim)) {
        if (density.kind == DensityKind::gaussian)
            whitening_ = std::make_unique<Whitening<T>>(density.points, density.matrix, dim);
        if (density.kind == DensityKind::mixture)
            points_ = std::make_unique<PaddedMatrix<T>>(density.points, density.count, dim);
        if (density.kind == DensityKind::logistic)
            points_ = std::make_unique<PaddedMatrix<T>>(density.points, density.count, dim - 1);
    }

    int64_t scratch(int64_t rows) const {
        return density_.kind == DensityKind::gaussian   ? rows * stride_
               : density_.kind == DensityKind::mixture  ? padded_to_lanes<T>(density_.count)
               : density_.kind == DensityKind::logistic ? rows * (block + 2 * stride_)
                                                        : 0;
    }

    // Sum of log Q over the rows; factor times its gradient is added to g.
    double add(const T* x, int64_t rows, T factor, T* g, T* scratch) const {
        switch (density_.kind) {
            case DensityKind::gaussian:
                return gaussian(x, rows, factor, g, scratch);
            case DensityKind::mixture:
                return mixture(x, rows, factor, g, scratch);
            case DensityKind::logistic:
                return logistic_regression(x, rows, factor, g, scratch);
            default:
                return 0;
        }
    }

  private:
    static constexpr int64_t block = 256;  // data at a time

    double gaussian(const T* x, int64_t rows, T factor, T* g, T* w) const {
        whitening_->apply(x, rows, w);
        vec<T> squares{};
        double total = 0;
        for (int64_t r = 0; r < rows; r++) {
            squares = vec<T>{};
            for (int64_t c = 0; c < padded_to_lanes<T>(dim_); c += lanes<T>) {
                const vec<T> v = load(w + r * stride_ + c);
                squares += v * v;
                store(w + r * stride_ + c, vec<T>(v * (-factor)));
            }
            total += density_.rate - double(tree_sum<T>(squares)) / 2;
        }
        whitening_->add_pullback(w, rows, g);
        return total;
    }

    double mixture(const T* x, int64_t rows, T factor, T* g, T* term) const {
        const int64_t K = density_.count;
        double total = 0;
        for (int64_t r = 0; r < rows; r++) {
            T largest = -std::numeric_limits<T>::infinity();
            for (int64_t k = 0; k < K; k++) {
                vec<T> squares{};
                for (int64_t c = 0; c < padded_to_lanes<T>(dim_); c += lanes<T>) {
                    const vec<T> d = load(x + r * stride_ + c) - load(points_->plain.data() + k * stride_ + c);
                    squares += d * d;
                }
                term[k] = density_.log_weights[k] - tree_sum<T>(squares) * density_.precision[k] / 2;
                largest = std::max(largest, term[k]);
            }
            T sum = 0;
            for (int64_t k = 0; k < K; k += lanes<T>)
                store(term + k, exponential(vec<T>(load(term + k) - largest)).value());
            for (int64_t k = 0; k < K; k++) sum += term[k];
            total += double(largest) + std::log(double(sum));
            for (int64_t k = 0; k < K; k++) {
                const T weight = factor * term[k] / sum * density_.precision[k];
                for (int64_t c = 0; c < padded_to_lanes<T>(dim_); c += lanes<T>) {
                    const vec<T> d = load(points_->plain.data() + k * stride_ + c) - load(x + r * stride_ + c);
                    store(g + r * stride_ + c, vec<T>(load(g + r * stride_ + c) + d * weight));
                }
            }
        }
        return total;
    }

    // x = (weights w, log a): see gwf_fast.potentials.BayesianLogisticRegression
    double logistic_regression(const T* x, int64_t rows, T factor, T* g, T* margins) const {
        const int64_t n = dim_ - 1, S = density_.count, P = points_->transposed_stride, Q = points_->stride;
        T* sums = margins + rows * block;  // [rows][Q]
        std::fill_n(sums, rows * Q, T(0));
        double total = 0;
        for (int64_t s = 0; s < S; s += block) {
            const int64_t count = std::min(block, S - s);
            multiply<false>(x, stride_, points_->transposed.data() + s, P, n, margins, block, rows,
                            padded_to_lanes<T>(count));
            for (int64_t r = 0; r < rows; r++) {
                T* row = margins + r * block;
                std::fill(row + count, row + padded_to_lanes<T>(count), T(0));
                vec<T> losses{};
                for (int64_t c = 0; c < count; c += lanes<T>) {
                    const auto jet = evaluate<Function::log_sigmoid>(load(row + c), T(0));
                    losses += jet.value;
                    store(row + c, jet.first);
                }
                const double of_padding = -0.6931471805599453 * double(padded_to_lanes<T>(count) - count);
                total += double(tree_sum<T>(losses)) - of_padding;
            }
            multiply<false>(margins, block, points_->plain.data() + s * Q, Q, count, sums, Q, rows,
                            padded_to_lanes<T>(n), nullptr, true);
        }
        const double constant = std::log(density_.rate) - double(n) / 2 * 1.8378770664093453;
        for (int64_t r = 0; r < rows; r++) {
            const T *point = x + r * stride_, log_a = point[n], a = std::exp(log_a);
            T *to = g + r * stride_, squares = 0;
            for (int64_t c = 0; c < n; c++) {
                squares += point[c] * point[c];
                to[c] += factor * (sums[r * Q + c] - a * point[c]);
            }
            const T slope = T(n) / 2 - a * squares / 2 - T(density_.rate) * a + 1;
            to[n] += factor * slope;
            total += constant - double(a) * (double(squares) / 2 + density_.rate) + (double(n) / 2 + 1) * double(log_a);
        }
        return total;
    }

    Density<T> density_;
    int64_t dim_, stride_;
    std::unique_ptr<Whitening<T>> whitening_;
    std::unique_ptr<PaddedMatrix<T>> points_;
};

}  // namespace gwf::GWF_ISA
