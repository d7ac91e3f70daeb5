// One entropic problem between two small sets: its potentials by sweeps, and what they say of its optimum. The
// iterations are those of gwf_fast/transport/solve.py, the derivatives those of cost.py: see there for their reasons.
#pragma once
#include <utility>
#include <vector>

#include "team.h"
#include "transport/soften.h"
#include "transport/transport.h"

namespace gwf::GWF_ISA::entropic {

// The factor of successive over-relaxation, from the rate at which the error falls.
class Relaxation {
  public:
    double factor = 1;
    void see(double error) {
        if (++sweeps_ % window) return;
        const double before = std::exchange(before_, error);
        if (before == 0) return;
        const double rate = std::pow(error / before, 1.0 / window), w = factor;
        if (rate >= 1) {
            factor = 1 + 0.5 * (w - 1);
        } else if (rate > 0.3) {
            const double sum = rate + w - 1, contraction = std::min(sum * sum / (rate * w * w), 1.0);
            factor = std::max(w, std::min(2 / (1 + std::sqrt(1 - contraction)), 1.99));
        }
    }

  private:
    static constexpr int window = 10;
    int sweeps_ = 0;
    double before_ = 0;
};

class EntropicProblem {
  public:
    const Side &x, &y;
    double *f, *g;  // [width] of each side; one of a sample with itself
    double error = 0;
    int64_t sweeps = 0;

    static int64_t size(int64_t n, int64_t m, bool itself) {
        return 4 * (padded(n) + padded(m) + 32) + Half::size(n, m) + (itself ? 0 : Half::size(m, n));
    }
    // y is x for the problem of a sample with itself.
    EntropicProblem(Arena<double>& arena, const Side& rows, const Side& columns, double rho)
        : x(rows), y(columns), rho_(rho), rows_{&x, &y, nullptr}, columns_{&y, &x, nullptr} {
        rows_.costs = arena.take(x.width * y.count);
        columns_.costs = itself() ? rows_.costs : arena.take(y.width * x.count);
        f = arena.take(x.width);
        g = itself() ? f : arena.take(y.width);
        best_f_ = arena.take(x.width);
        best_g_ = itself() ? best_f_ : arena.take(y.width);
        shifts_ = arena.take(std::max(x.width, y.width));
    }
    bool itself() const { return &x == &y; }

    // The largest cost.
    double read_costs(int64_t D, int p) {
        const double largest = measure(rows_, D, p);
        if (!itself()) measure(columns_, D, p);
        return largest;
    }

    // One averaged update of both sides for each epsilon.
    void anneal(const std::vector<double>& epsilons) {
        update_rows(nullptr, epsilons[0], nullptr, f);
        if (!itself()) update_columns(nullptr, epsilons[0], nullptr, g);
        for (double epsilon : epsilons) {
            breathe(work());
            update_rows(g, epsilon, nullptr, best_f_);
            if (!itself()) {
                update_columns(f, epsilon, nullptr, best_g_);
                blend(g, best_g_, 0.5, y.width);
            }
            blend(f, best_f_, 0.5, x.width);
        }
    }

    // Rows and columns in turn, over-relaxed, until the marginals hold; `started`: from g.
    void alternate(double epsilon, bool started, int64_t max_iterations, double tolerance) {
        update_rows(started ? g : nullptr, epsilon, nullptr, f);
        if (!started) std::fill(g, g + y.width, 0.0);
        Relaxation relaxation;
        for (bool exact_rows = true;;) {
            breathe(work());
            update_columns(f, epsilon, started || sweeps ? g : nullptr, best_g_);
            sweeps++;
            error = marginal_error(y, g, best_g_, epsilon, rho_);
            const bool finished = error <= tolerance || sweeps >= max_iterations;
            if (finished && exact_rows) return;
            if (!finished) relaxation.see(error);
            // near the end plain sweeps, which leave the rows exact
            const double factor = finished || sweeps + 1 >= max_iterations ? 1.0 : relaxation.factor;
            blend(g, best_g_, factor, y.width);
            update_rows(g, epsilon, f, best_f_);
            blend(f, best_f_, factor, x.width);
            exact_rows = factor == 1;
        }
    }

    // Plain sweeps, f and then g, which leave the columns exact; `started`: from g. All of them where tolerance is 0.
    void sweep(double epsilon, bool started, int64_t max_iterations, double tolerance) {
        update_rows(started ? g : nullptr, epsilon, nullptr, best_f_);
        for (;;) {
            breathe(work());
            std::copy(best_f_, best_f_ + x.width, f);
            update_columns(f, epsilon, started || sweeps ? g : nullptr, best_g_);
            std::copy(best_g_, best_g_ + y.width, g);
            update_rows(g, epsilon, f, best_f_);
            error = marginal_error(x, f, best_f_, epsilon, rho_);
            if (++sweeps >= max_iterations || (tolerance > 0 && error <= tolerance)) return;
        }
    }

    // Of a sample with itself, by averaged updates; `started`: from f.
    void average(double epsilon, bool started, int64_t max_iterations, double tolerance) {
        update_rows(started ? f : nullptr, epsilon, nullptr, best_f_);
        std::copy(best_f_, best_f_ + x.width, f);
        for (;;) {
            breathe(work());
            update_rows(f, epsilon, f, best_f_);
            sweeps++;
            error = marginal_error(x, f, best_f_, epsilon, rho_);
            if (sweeps >= max_iterations || error <= tolerance) return;
            blend(f, best_f_, 0.5, x.width);
        }
    }

    // Both potentials updated once more: what `value`, `add_displacements` and `add_weight_slopes` read.
    void finish(double epsilon) {
        update_rows(g, epsilon, f, best_f_);
        if (!itself()) update_columns(f, epsilon, g, best_g_);
    }

    // Of the dual; of a sample with itself half of it.
    double value(double epsilon) const {
        const double share = itself() ? 0.5 : 1.0, of_x = side_value(x, best_f_), of_y = side_value(y, best_g_);
        if (rho_ == 0) return share * (of_x + of_y);
        const double masses = x.total * y.total - 0.5 * (x.total + y.total);
        return share * ((rho_ + 0.5 * epsilon) * (of_x + of_y) + epsilon * masses);
    }

    // out [D][width] += sign * m sum_j p_ij (-grad_x c(x_i, y_j)), with p the plan whose rows have the sum 1, and m
    // what soft marginals leave of a row's mass; of the columns, with x and y exchanged, likewise.
    void add_displacements(bool of_columns, double epsilon, int64_t D, int p, double sign, double* out) {
        const Half& half = of_columns ? columns_ : rows_;
        const Side &side = *half.lanes, &terms = *half.terms;
        const double* best = of_columns ? best_g_ : best_f_;
        const Numbers numbers = numbers_at(epsilon);
        shift_terms(terms, of_columns ? f : g, numbers.unit(), shifts_);
        for (int64_t i = 0; i < side.width; i += L) {
            breathe(double(terms.count * L * (D + 20)));
            const Vec log_sum = load(best + i) * (-1 / numbers.scale());
            const Vec mass = rho_ > 0 ? exponential(Vec(load(best + i) * (-1 / rho_))).value() : splat(1.0);
            for (int64_t j = 0; j < terms.count; j++) {
                const Vec cost = load(half.costs + j * side.width + i);
                Vec share = exp2_any<false>(Vec((shifts_[j] - log_sum) - cost * numbers.unit())) * mass * sign;
                if (p == 1) share = zero_below(Vec(share / larger(splat(nearest), cost)), cost, splat(nearest));
                for (int64_t d = 0; d < D; d++) {
                    double* at = out + d * side.width + i;
                    const Vec away = terms.points[d * terms.width + j] - load(side.points + d * side.width + i);
                    store(at, Vec(load(at) + share * away));
                }
            }
        }
    }

    // out [width] += sign * the derivative in the weights of a side, of half the value for a sample with itself.
    void add_weight_slopes(bool of_columns, double epsilon, double sign, double* out) const {
        const Side &side = of_columns ? y : x, &other = of_columns ? x : y;
        const double* best = of_columns ? best_g_ : best_f_;
        for (int64_t i = 0; i < side.count; i++) {
            double slope = best[i];
            if (rho_ > 0) slope = (rho_ + epsilon) * -std::expm1(-best[i] / rho_) + epsilon * (other.total - 1);
            out[i] += sign * slope;
        }
    }

  private:
    static constexpr double nearest = 1e-145;  // distances below count as 0
    double rho_;
    Half rows_, columns_;
    double *best_f_, *best_g_, *shifts_;

    double work() const { return 40.0 * double(x.width) * double(y.width); }
    Numbers numbers_at(double epsilon) const { return {epsilon, rho_ > 0 ? rho_ / (rho_ + epsilon) : 1.0}; }
    void update_rows(const double* potential, double epsilon, const double* near, double* out) {
        update(rows_, potential, numbers_at(epsilon), near, shifts_, out);
    }
    void update_columns(const double* potential, double epsilon, const double* near, double* out) {
        update(columns_, potential, numbers_at(epsilon), near, shifts_, out);
    }
    static void blend(double* potential, const double* best, double factor, int64_t width) {
        for (int64_t i = 0; i < width; i++) potential[i] += factor * (best[i] - potential[i]);
    }
    double side_value(const Side& side, const double* best) const {
        double sum = 0;
        for (int64_t i = 0; i < side.count; i++)
            if (side.weights[i] > 0) sum += side.weights[i] * (rho_ > 0 ? -std::expm1(-best[i] / rho_) : best[i]);
        return sum;
    }
};

}  // namespace gwf::GWF_ISA::entropic
