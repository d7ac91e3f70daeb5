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

// What a density does on a tile of rows. A new one: a class here, its line in make_density, and `compiled` of its class
// in gwf_fast/potentials.py, which gives the arrays and numbers.
template <class T> class TileDensity {
  public:
    virtual ~TileDensity() = default;
    virtual int64_t scratch(int64_t rows) const = 0;  // numbers, for tiles of so many rows
    // Sum of log Q over the rows; factor times its gradient is added to g.
    virtual double add(const T* x, int64_t rows, T factor, T* g, T* scratch) const = 0;
};

// arrays: mean [D], inverse of the Cholesky factor [D, D]; numbers: log of the normalisation.
template <class T> class GaussianDensity final : public TileDensity<T> {
  public:
    GaussianDensity(const Density<T>& density, int64_t dim)
        : dim_(dim),
          stride_(row_stride<T>(dim)),
          log_norm_(density.number(0)),
          whitening_(density.array(0, 1, dim).data, density.array(1, dim, dim).data, dim) {}

    int64_t scratch(int64_t rows) const override { return rows * stride_; }

    double add(const T* x, int64_t rows, T factor, T* g, T* w) const override {
        whitening_.apply(x, rows, w);
        double total = 0;
        for (int64_t r = 0; r < rows; r++) {
            vec<T> squares{};
            for (int64_t c = 0; c < padded_to_lanes<T>(dim_); c += lanes<T>) {
                const vec<T> v = load(w + r * stride_ + c);
                squares += v * v;
                store(w + r * stride_ + c, vec<T>(v * (-factor)));
            }
            total += log_norm_ - double(tree_sum<T>(squares)) / 2;
        }
        whitening_.add_pullback(w, rows, g);
        return total;
    }

  private:
    int64_t dim_, stride_;
    double log_norm_;
    Whitening<T> whitening_;
};

// arrays: means [K, D], 1 / s^2 [K], log of weight over normalisation [K].
template <class T> class MixtureDensity final : public TileDensity<T> {
  public:
    MixtureDensity(const Density<T>& density, int64_t dim)
        : dim_(dim),
          stride_(row_stride<T>(dim)),
          count_(density.array(0, -1, dim).rows),
          means_(density.arrays[0].data, count_, dim),
          precision_(density.array(1, 1, count_).data),
          log_weights_(density.array(2, 1, count_).data) {}

    int64_t scratch(int64_t) const override { return padded_to_lanes<T>(count_); }

    double add(const T* x, int64_t rows, T factor, T* g, T* term) const override {
        double total = 0;
        for (int64_t r = 0; r < rows; r++) {
            T largest = -std::numeric_limits<T>::infinity();
            for (int64_t k = 0; k < count_; k++) {
                vec<T> squares{};
                for (int64_t c = 0; c < padded_to_lanes<T>(dim_); c += lanes<T>) {
                    const vec<T> d = load(x + r * stride_ + c) - load(means_.plain.data() + k * stride_ + c);
                    squares += d * d;
                }
                term[k] = log_weights_[k] - tree_sum<T>(squares) * precision_[k] / 2;
                largest = std::max(largest, term[k]);
            }
            T sum = 0;
            for (int64_t k = 0; k < count_; k += lanes<T>)
                store(term + k, exponential(vec<T>(load(term + k) - largest)).value());
            for (int64_t k = 0; k < count_; k++) sum += term[k];
            total += double(largest) + std::log(double(sum));
            for (int64_t k = 0; k < count_; k++) {
                const T weight = factor * term[k] / sum * precision_[k];
                for (int64_t c = 0; c < padded_to_lanes<T>(dim_); c += lanes<T>) {
                    const vec<T> d = load(means_.plain.data() + k * stride_ + c) - load(x + r * stride_ + c);
                    store(g + r * stride_ + c, vec<T>(load(g + r * stride_ + c) + d * weight));
                }
            }
        }
        return total;
    }

  private:
    int64_t dim_, stride_, count_;
    PaddedMatrix<T> means_;
    const T *precision_, *log_weights_;
};

// x = (weights w, log a): see gwf_fast.potentials.BayesianLogisticRegression.
// arrays: labels times features [S, D - 1]; numbers: rate of the Gamma prior.
template <class T> class LogisticDensity final : public TileDensity<T> {
  public:
    LogisticDensity(const Density<T>& density, int64_t dim)
        : dim_(dim),
          stride_(row_stride<T>(dim)),
          count_(density.array(0, -1, dim - 1).rows),
          rate_(density.number(0)),
          data_(density.arrays[0].data, count_, dim - 1) {}

    int64_t scratch(int64_t rows) const override { return rows * (block + 2 * stride_); }

    double add(const T* x, int64_t rows, T factor, T* g, T* margins) const override {
        const int64_t n = dim_ - 1, P = data_.transposed_stride, Q = data_.stride;
        T* sums = margins + rows * block;  // [rows][Q]
        std::fill_n(sums, rows * Q, T(0));
        double total = 0;
        for (int64_t s = 0; s < count_; s += block) {
            const int64_t count = std::min(block, count_ - s);
            multiply<false>(x, stride_, data_.transposed.data() + s, P, n, margins, block, rows,
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
            multiply<false>(margins, block, data_.plain.data() + s * Q, Q, count, sums, Q, rows, padded_to_lanes<T>(n),
                            nullptr, true);
        }
        const double constant = std::log(rate_) - double(n) / 2 * 1.8378770664093453;
        for (int64_t r = 0; r < rows; r++) {
            const T *point = x + r * stride_, log_a = point[n], a = std::exp(log_a);
            T *to = g + r * stride_, squares = 0;
            for (int64_t c = 0; c < n; c++) {
                squares += point[c] * point[c];
                to[c] += factor * (sums[r * Q + c] - a * point[c]);
            }
            const T slope = T(n) / 2 - a * squares / 2 - T(rate_) * a + 1;
            to[n] += factor * slope;
            total += constant - double(a) * (double(squares) / 2 + rate_) + (double(n) / 2 + 1) * double(log_a);
        }
        return total;
    }

  private:
    static constexpr int64_t block = 256;  // data at a time

    int64_t dim_, stride_, count_;
    double rate_;
    PaddedMatrix<T> data_;
};

template <class T> std::unique_ptr<TileDensity<T>> make_density(const Density<T>& density, int64_t dim) {
    if (density.kind == "gaussian") return std::make_unique<GaussianDensity<T>>(density, dim);
    if (density.kind == "mixture") return std::make_unique<MixtureDensity<T>>(density, dim);
    if (density.kind == "logistic") return std::make_unique<LogisticDensity<T>>(density, dim);
    if (density.exists()) throw std::invalid_argument("density: csrc/primal_dual/density.h has no " + density.kind);
    return nullptr;
}

}  // namespace gwf::GWF_ISA
