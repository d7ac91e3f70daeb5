// A batch of small entropic problems: each on one thread, in that thread's cache from its points to its gradients.
#pragma once
#include <optional>

#include "transport/problem.h"

namespace gwf::GWF_ISA::entropic {

inline constexpr double most_exponents = 1e9;  // costs in units of epsilon, of which doubles keep enough digits

// Lengths from the diameter down to that of epsilon, each `scaling` times the one before, as powers p.
inline std::vector<double> schedule(double diameter, const TransportNumbers& numbers) {
    const int p = numbers.p;
    const double blur = p == 2 ? std::sqrt(numbers.epsilon) : numbers.epsilon, ratio = std::log(numbers.scaling);
    const double from = std::log(diameter), count = std::ceil((std::log(blur) - from) / ratio);
    std::vector<double> epsilons{std::pow(diameter, p)};
    for (double k = 0; k < count; k++) epsilons.push_back(std::exp(p * (from + k * ratio)));
    epsilons.push_back(numbers.epsilon);
    return epsilons;
}

// The diagonal of the box around both samples, over the whole batch.
template <class T> double bounding_diameter(const TransportCall<T>& call) {
    double square = 0;
    for (int64_t d = 0; d < call.dim; d++) {
        T low = std::numeric_limits<T>::infinity(), high = -low;
        auto see = [&](const T* points, const int64_t* lengths, int64_t rows) {
            for (int64_t b = 0; b < call.batch; b++, points += rows * call.dim)
                for (int64_t i = 0; i < (lengths ? lengths[b] : rows); i++) {
                    low = std::min(low, points[i * call.dim + d]);
                    high = std::max(high, points[i * call.dim + d]);
                }
        };
        see(call.x, call.row_lengths, call.rows);
        see(call.y, call.column_lengths, call.columns);
        square += double(high - low) * double(high - low);
    }
    return double(T(std::sqrt(square)));
}

template <class T> class Element {
  public:
    Element(const TransportCall<T>& call, int64_t b, const std::vector<double>& epsilons)
        : call_(call),
          numbers_(call.numbers),
          epsilons_(epsilons),
          b_(b),
          D_(call.dim),
          n_(call.row_lengths ? call.row_lengths[b] : call.rows),
          m_(call.column_lengths ? call.column_lengths[b] : call.columns) {}

    bool solve(TransportOutcome& outcome) {
        if (n_ < 1 || m_ < 1) return false;
        const FlushDenormals flush;
        const bool with_x = numbers_.debias || call_.velocity, with_y = numbers_.debias;
        Arena<double> memory(size(with_x, with_y));
        Side x(memory, n_, D_), y(memory, m_, D_);
        if (!x.read(at(call_.x, call_.rows * D_), at(call_.a, call_.rows), D_)) return false;
        if (!numbers_.itself && !y.read(at(call_.y, call_.columns * D_), at(call_.b, call_.columns), D_)) return false;
        const Side& other = numbers_.itself ? x : y;
        const bool same_mass = std::abs(x.total - other.total) <= 1e-3 * x.total;
        if (!same_mass && numbers_.strength == 0 && !numbers_.only_anneal) return false;

        EntropicProblem cross(memory, x, other, numbers_.strength);
        std::optional<EntropicProblem> x_own, y_own;
        if (with_x) x_own.emplace(memory, x, x, numbers_.strength);
        if (with_y) y_own.emplace(memory, y, y, numbers_.strength);
        const bool solved = solve(cross, call_.start, call_.columns, outcome, 0) &&
                            (!x_own || solve(*x_own, call_.x_start, call_.rows, outcome, 1)) &&
                            (!y_own || solve(*y_own, call_.y_start, call_.columns, outcome, 2));
        if (!solved) return false;
        write(cross.f, n_, call_.rows, call_.f);
        write(cross.g, cross.itself() ? n_ : m_, call_.columns, call_.g);
        if (call_.error) call_.error[b_] = T(cross.error);
        if (x_own) write(x_own->f, n_, call_.rows, call_.x_own);
        if (y_own) write(y_own->f, m_, call_.columns, call_.y_own);
        if (x_own && call_.x_error) call_.x_error[b_] = T(x_own->error);
        if (y_own && call_.y_error) call_.y_error[b_] = T(y_own->error);
        if (call_.value || call_.velocity) describe(memory, cross, x_own, y_own);
        return true;
    }

  private:
    using Own = std::optional<EntropicProblem>;
    const TransportCall<T>& call_;
    const TransportNumbers& numbers_;
    const std::vector<double>& epsilons_;
    int64_t b_, D_, n_, m_;

    const T* at(const T* array, int64_t size) const { return array ? array + b_ * size : nullptr; }
    int64_t size(bool with_x, bool with_y) const {
        return Side::size(n_, D_) + Side::size(m_, D_) + EntropicProblem::size(n_, m_, numbers_.itself) +
               (with_x ? EntropicProblem::size(n_, n_, true) : 0) + (with_y ? EntropicProblem::size(m_, m_, true) : 0) +
               (D_ + 1) * (padded(std::max(n_, m_)) + 16);
    }

    bool solve(EntropicProblem& problem, const T* start, int64_t stride, TransportOutcome& outcome, int which) {
        const double largest = problem.read_costs(D_, numbers_.p);
        if (!(largest / numbers_.epsilon <= most_exponents)) return false;
        const int64_t count = problem.y.count;
        for (int64_t i = 0; start && i < problem.y.width; i++) {
            problem.g[i] = start[b_ * stride + std::min(i, count - 1)];
            if (!(std::abs(problem.g[i]) / numbers_.epsilon <= most_exponents)) return false;
        }
        if (problem.itself()) {
            if (numbers_.only_anneal)
                problem.anneal(epsilons_);
            else
                problem.average(numbers_.epsilon, start, numbers_.max_iterations, numbers_.tolerance);
        } else {
            const bool descends = numbers_.only_anneal || (!start && !epsilons_.empty());
            if (descends) problem.anneal(epsilons_);
            if (numbers_.plain)
                problem.sweep(numbers_.epsilon, start || descends, numbers_.max_iterations, numbers_.tolerance);
            else if (!numbers_.only_anneal)
                problem.alternate(numbers_.epsilon, start || descends, numbers_.max_iterations, numbers_.tolerance);
        }
        outcome.sweeps[which] = std::max(outcome.sweeps[which], problem.sweeps);
        outcome.error = std::isnan(problem.error) ? problem.error : std::max(outcome.error, problem.error);
        return true;
    }

    void write(const double* values, int64_t count, int64_t rows, T* out, int64_t width = 1, int64_t stride = 0) const {
        if (!out) return;
        out += b_ * rows * width;
        for (int64_t i = 0; i < count; i++)
            for (int64_t d = 0; d < width; d++) out[i * width + d] = T(values[d * stride + i]);
        std::fill(out + count * width, out + rows * width, T(0));
    }

    // Values and derivatives at the potentials.
    void describe(Arena<double>& memory, EntropicProblem& cross, Own& x_own, Own& y_own) const {
        const double epsilon = numbers_.epsilon;
        cross.finish(epsilon);
        if (x_own) x_own->finish(epsilon);
        if (y_own) y_own->finish(epsilon);
        if (call_.value) {
            double value = cross.value(epsilon);
            if (x_own) value -= x_own->value(epsilon);
            if (y_own) value -= y_own->value(epsilon);
            call_.value[b_] = T(value);
        }
        const int64_t most = padded(std::max(n_, m_));
        double *moves = memory.take(D_ * most), *slopes = memory.take(most);
        auto of_side = [&](const Side& side, bool columns, Own& own, int64_t rows, T* velocity, T* points, T* weights) {
            if (velocity || points) {
                std::fill(moves, moves + D_ * side.width, 0.0);
                cross.add_displacements(columns, epsilon, D_, numbers_.p, 1, moves);
                if (own) own->add_displacements(false, epsilon, D_, numbers_.p, -1, moves);
                write(moves, side.count, rows, velocity, D_, side.width);
                for (int64_t d = 0; d < D_; d++)
                    for (int64_t i = 0; i < side.width; i++) moves[d * side.width + i] *= -side.weights[i];
                write(moves, side.count, rows, points, D_, side.width);
            }
            if (!weights) return;
            std::fill(slopes, slopes + side.width, 0.0);
            cross.add_weight_slopes(columns, epsilon, 1, slopes);
            if (own) own->add_weight_slopes(false, epsilon, -1, slopes);
            write(slopes, side.count, rows, weights);
        };
        of_side(cross.x, false, x_own, call_.rows, call_.velocity, call_.x_slope, call_.a_slope);
        of_side(cross.y, true, y_own, call_.columns, nullptr, call_.y_slope, call_.b_slope);
    }
};

template <class T> TransportOutcome solve(const TransportCall<T>& call) {
    TransportOutcome all;
    const TransportNumbers& numbers = call.numbers;
    std::vector<double> epsilons;
    if (numbers.scaling > 0 && call.batch > 0) {
        constexpr double most_epsilons = 10'000;
        const double diameter = std::max(numbers.diameter >= 0 ? numbers.diameter : bounding_diameter(call), 1e-30);
        const double blur = numbers.p == 2 ? std::sqrt(numbers.epsilon) : numbers.epsilon;
        all.solved = diameter < std::numeric_limits<double>::infinity() &&
                     std::log(blur / diameter) / std::log(numbers.scaling) <= most_epsilons;
        if (!all.solved) return all;
        if (numbers.only_anneal || diameter > blur) epsilons = schedule(diameter, numbers);
    }
    std::vector<TransportOutcome> each(static_cast<size_t>(call.batch));
    const double sweeps = numbers.only_anneal ? double(epsilons.size()) : double(numbers.max_iterations);
    const double work = double(call.batch) * double(call.rows) * double(call.columns) * std::min(sweeps, 20.0) * 16;
    Team::form(work < 3e6 ? 1 : available_threads(), [&](Team& team, int) {
        team.loop(call.batch, 1, [&](int64_t b) {
            TransportOutcome& outcome = each[size_t(b)];
            outcome.solved = Element<T>(call, b, epsilons).solve(outcome);
        });
    });
    for (const TransportOutcome& outcome : each) {
        all.solved &= outcome.solved;
        for (int which = 0; which < 3; which++) all.sweeps[which] = std::max(all.sweeps[which], outcome.sweeps[which]);
        all.error = std::isnan(outcome.error) ? outcome.error : std::max(all.error, outcome.error);
    }
    return all;
}

}  // namespace gwf::GWF_ISA::entropic
