// The loop itself: minibatches, critic ascents, map descents. Nothing is allocated once it has begun.
#pragma once
#include "mlp/tile.h"
#include "primal_dual/batch.h"
#include "primal_dual/density.h"
#include "primal_dual/penalty.h"
#include "random/philox.h"
#include "team.h"

namespace gwf::GWF_ISA {

inline constexpr int64_t tile_budget = 384 * 1024;  // bytes of activations, which stay in the L2 cache
inline constexpr int64_t chunks_at_most = 8;        // of rows, each with gradient sums of its own

template <class T> class PrimalDualLoop final : public PrimalDual {
  public:
    explicit PrimalDualLoop(const PrimalDualProblem<T>& problem)
        : p_(problem),
          stride_(row_stride<T>(problem.dim)),
          map_(problem.map),
          critic_(problem.critic),
          density_(make_density(problem.density, problem.dim)),
          batch_(p_, !critic_.layers.empty()),
          y_(problem.batch * stride_),
          flat_(std::max(problem.batch, problem.target_batch) * problem.dim),
          rest_gradient_(problem.rest ? problem.batch * problem.dim : 0),
          between_(problem.penalty > 0 ? std::min(problem.batch, problem.target_batch) : 0),
          mixing_(between_) {
        if (p_.mean) whitening_ = std::make_unique<Whitening<T>>(p_.mean, p_.whitening, p_.dim);
        plan();
    }

    PrimalDualReport run(int64_t first, int64_t count, int threads) override {
        PrimalDualReport report;
        threads_ = std::max(1, std::min({threads, available_threads(), int(chunks_at_most)}));
        reserve_threads();
        const FlushDenormals flush;
        AdamSettings critic_adam = p_.adam;
        critic_adam.average = 0;
        for (int64_t iteration = first; iteration < first + count; iteration++) {
            batch_.draw(iteration);
            iteration_ = uint32_t(iteration);
            const double rate = p_.schedule[iteration];
            if (p_.critic_steps) map_batch();
            for (int64_t i = 0; i < p_.critic_steps; i++) {
                if (p_.penalty > 0)
                    philox_uniforms(p_.seed, uint32_t(iteration), p_.penalty_stream + uint32_t(i), between_,
                                    mixing_.data());
                report.critic_loss = critic_gradient(uint32_t(i));
                critic_.update(critic_sums_, critic_.rate() * rate, critic_adam);
            }
            for (int64_t i = 0; i < p_.map_steps; i++) {
                report.map_loss = map_gradient(uint32_t(i));
                map_.update(map_sums_, map_.rate() * rate, p_.adam);
            }
            report.iterations++;
            report.mean_map_loss += (report.map_loss - report.mean_map_loss) / double(report.iterations);
            if (!std::isfinite(report.map_loss) || !std::isfinite(report.critic_loss)) break;
        }
        return report;
    }

    void write_back() override {
        map_.write_back(p_.adam.average > 0);
        critic_.write_back(false);
    }

  private:
    enum class Side { model, target, between };

    struct Chunk {
        Side side;
        int64_t begin, end;
    };

    struct Worker {  // buffers of one thread
        AlignedArray<T> memory;
        NetworkBuffers<T> map, critic;
        std::unique_ptr<TileMemory<T>> second;  // of the penalty
        AlignedArray<T> points, directions;     // [rows][D]
        T *y, *w, *u, *g, *values, *cotangents, *scratch;
    };

    static int64_t row_bytes(const TrainedNetwork<T>& net) {
        int64_t sum = 0;
        for (const auto& layer : net.layers) sum += 2 * layer.out_stride;
        return sum * int64_t(sizeof(T));
    }

    // Tiles and chunks follow from the sizes alone, so that the sums do not depend on the threads.
    void plan() {
        const int64_t bytes = row_bytes(map_) + row_bytes(critic_);
        for (const auto* net : {&map_, &critic_})
            for (const auto& layer : net->layers) row_work_ += double(layer.out_stride) * double(layer.in) / 4;
        const int64_t largest = std::clamp<int64_t>(tile_budget / bytes / 12 * 12, 48, 144);
        auto split = [&](int64_t rows, Side side, std::vector<Chunk>& chunks) {
            constexpr int64_t most = chunks_at_most / 2;
            int64_t tiles = (rows + largest - 1) / largest;
            if (tiles > 2) tiles = (tiles + most - 1) / most * most;  // even chunks
            const int64_t tile = ((rows + tiles - 1) / tiles + 3) / 4 * 4;
            const int64_t size = (tiles + most - 1) / most * tile;
            tile_[size_t(side)] = tile;
            for (int64_t r = 0; r < rows; r += size) chunks.push_back({side, r, std::min(rows, r + size)});
        };
        split(p_.batch, Side::model, map_chunks_);
        critic_chunks_ = map_chunks_;
        if (!critic_.layers.empty()) split(p_.target_batch, Side::target, critic_chunks_);
        if (p_.penalty > 0) split(between_, Side::between, critic_chunks_);
        sums_memory_ =
            AlignedArray<T>(int64_t(map_chunks_.size()) * map_.size + int64_t(critic_chunks_.size()) * critic_.size);
        T* next = sums_memory_.data();
        for (size_t c = 0; c < map_chunks_.size(); c++) map_sums_.push_back(std::exchange(next, next + map_.size));
        for (size_t c = 0; c < critic_chunks_.size(); c++)
            critic_sums_.push_back(std::exchange(next, next + critic_.size));
        totals_.resize(critic_chunks_.size());
    }

    void reserve_threads() {
        while (int(workers_.size()) < threads_) {
            auto worker = std::make_unique<Worker>();
            const int64_t rows = *std::max_element(tile_, tile_ + 3), row = Arena<T>::rounded(rows * stride_),
                          line = padded_to_lanes<T>(rows) + 16;
            const bool map_drops = p_.map_dropout > 0, critic_drops = p_.critic_dropout > 0;
            worker->memory = AlignedArray<T>(
                NetworkBuffers<T>::size(map_, rows, map_drops) + NetworkBuffers<T>::size(critic_, rows, critic_drops) +
                4 * row + 2 * Arena<T>::rounded(line) + (density_ ? density_->scratch(rows) : 0) + 64);
            T* next = worker->memory.data();
            worker->map.take(map_, rows, map_drops, next);
            worker->critic.take(critic_, rows, critic_drops, next);
            for (T** buffer : {&worker->y, &worker->w, &worker->u, &worker->g})
                *buffer = std::exchange(next, next + row);
            worker->values = std::exchange(next, next + Arena<T>::rounded(line));
            worker->cotangents = std::exchange(next, next + Arena<T>::rounded(line));
            worker->scratch = next;
            if (p_.penalty > 0) {
                worker->second = std::make_unique<TileMemory<T>>(MlpPass::second, critic_.layers, rows);
                worker->points = AlignedArray<T>(rows * p_.dim);
                worker->directions = AlignedArray<T>(rows * p_.dim);
            }
            workers_.push_back(std::move(worker));
        }
    }

    // body(worker, chunk, its number) for all chunks
    template <class Body> void each_chunk(const std::vector<Chunk>& chunks, Body&& body) {
        const int64_t count = int64_t(chunks.size());
        Team::form(threads_, [&](Team& team, int number) {
            const FlushDenormals flush;
            Worker& worker = *workers_[size_t(number)];
            team.loop(count, 1, [&](int64_t c) { body(worker, chunks[size_t(c)], size_t(c)); });
        });
    }

    template <class Body> void each_tile(const Chunk& chunk, Body&& body) const {
        const int64_t tile = tile_[size_t(chunk.side)];
        for (int64_t r = chunk.begin; r < chunk.end; r += tile) {
            breathe(double(tile) * row_work_);
            body(r, std::min(tile, chunk.end - r));
        }
    }

    // y_: what the critic sees of T(u)
    void map_batch() {
        each_chunk(map_chunks_, [&](Worker& worker, const Chunk& chunk, size_t) {
            each_tile(chunk, [&](int64_t r, int64_t rows) {
                T* y = y_.data() + r * stride_;
                worker.map.dropout = dropout(map_passes, 0, r);
                MapPass<T>{map_, worker.map}.forward(batch_.input_rows(r), rows, whitening_ ? worker.y : y);
                if (whitening_) whitening_->apply(worker.y, rows, y);
            });
        });
    }

    // Hidden units are dropped by the pass that they belong to; the first descent of the map repeats the pass that the
    // critic has seen.
    enum Passes : uint32_t { map_passes = 0x80000000u, ascents = 0x90000000u, descents = 0xa0000000u };
    Dropout dropout(Passes passes, uint32_t step, int64_t first_row) const {
        const double rate = passes == map_passes ? p_.map_dropout : p_.critic_dropout;
        return {rate, p_.seed, iteration_, uint32_t(passes) | step << 8, first_row};
    }

    // log E e^h(z), from the rows in their order.
    double log_mean_exp(uint32_t step) {
        each_chunk(critic_chunks_, [&](Worker& worker, const Chunk& chunk, size_t) {
            if (chunk.side != Side::target) return;
            each_tile(chunk, [&](int64_t r, int64_t rows) {
                worker.critic.dropout = dropout(ascents, step, p_.batch + r);
                CriticPass<T>{critic_, worker.critic, worker.values, worker.cotangents}.forward(
                    batch_.target_rows(r), rows, {Function::identity, 0}, 1);
                std::copy_n(worker.values, rows, flat_.data() + r);
            });
        });
        const T* v = flat_.data();
        const double largest = double(*std::max_element(v, v + p_.target_batch));
        double sum = 0;
        for (int64_t r = 0; r < p_.target_batch; r++) sum += std::exp(double(v[r]) - largest);
        return largest + std::log(sum / double(p_.target_batch));
    }

    // Minus the critic's objective; its gradient goes to the sums.
    double critic_gradient(uint32_t step) {
        // the gradient of log E e^h is that of E e^(h - l) with l its value
        const double logarithm = p_.log_mean ? log_mean_exp(step) : 0;
        const Elementwise of_target = p_.log_mean ? Elementwise{Function::exp_shifted, logarithm} : p_.of_target;
        each_chunk(critic_chunks_, [&](Worker& worker, const Chunk& chunk, size_t c) {
            T* sums = critic_sums_[c];
            std::fill_n(sums, critic_.size, T(0));
            double total = 0;
            if (chunk.side == Side::between) {
                each_tile(chunk, [&](int64_t r, int64_t rows) { total += penalty_tile(worker, r, rows, sums); });
                totals_[c] = total;
                return;
            }
            const bool is_target = chunk.side == Side::target;
            const double weight =
                p_.coefficient * (is_target ? 1.0 / double(p_.target_batch) : -1.0 / double(p_.batch));
            const T* from = is_target ? batch_.target_rows(0) : y_.data();
            const CriticPass<T> critic{critic_, worker.critic, worker.values, worker.cotangents};
            each_tile(chunk, [&](int64_t r, int64_t rows) {
                const T* x = from + r * stride_;
                worker.critic.dropout = dropout(ascents, step, is_target ? p_.batch + r : r);
                total += critic.forward(x, rows, is_target ? of_target : p_.of_model, weight);
                critic.template backward<true>(x, rows, sums, nullptr);
            });
            totals_[c] = is_target && p_.log_mean ? 0 : weight * total;
        });
        return sum_of_totals(critic_chunks_.size()) + p_.coefficient * logarithm;
    }

    // With g = grad h and t the penalty's gradient in g, the gradient in the parameters is that of <t, g> with t fixed:
    // the derivative along t, in the point, of the gradient of h.
    double penalty_tile(Worker& worker, int64_t first, int64_t rows, T* sums) {
        T *x = worker.w, *g = worker.g;
        for (int64_t r = 0; r < rows; r++) {
            const int64_t at = (first + r) * stride_;
            const T e = T(mixing_.data()[first + r]);
            for (int64_t i = 0; i < stride_; i += lanes<T>) {
                const vec<T> z = load(batch_.target_rows(0) + at + i), y = load(y_.data() + at + i);
                store(x + r * stride_ + i, vec<T>(z + (y - z) * e));
            }
        }
        const LeakyPenalty<T> leaky{critic_, worker.critic};
        const bool is_leaky = leaky.serves(critic_);
        if (is_leaky) {
            leaky.gradient(x, rows, g);
        } else {
            const CriticPass<T> critic{critic_, worker.critic, worker.values, worker.cotangents};
            critic.forward(x, rows, {Function::identity, 0}, 1);
            critic.template backward<false>(x, rows, nullptr, g);
        }
        const double weight = p_.coefficient * p_.penalty / double(between_);
        double total = 0;
        for (int64_t r = 0; r < rows; r++) {
            vec<T> squares{};
            for (int64_t i = 0; i < padded_to_lanes<T>(p_.dim); i += lanes<T>)
                squares += load(g + r * stride_ + i) * load(g + r * stride_ + i);
            const double norm = std::sqrt(double(tree_sum<T>(squares))), excess = norm - 1;
            total += excess * excess;
            const T scale = norm > 0 ? T(2 * weight * excess / norm) : T(0);
            for (int64_t i = 0; i < stride_; i += lanes<T>)
                store(g + r * stride_ + i, vec<T>(load(g + r * stride_ + i) * scale));
        }
        if (is_leaky)
            leaky.add(g, rows, sums);
        else
            add_second(worker, x, g, rows, sums);
        return total * weight;
    }

    // The same of <t, grad h(x)> for any function.
    void add_second(Worker& worker, const T* x, const T* t, int64_t rows, T* sums) const {
        for (int64_t r = 0; r < rows; r++) {
            std::copy_n(x + r * stride_, p_.dim, worker.points.data() + r * p_.dim);
            std::copy_n(t + r * stride_, p_.dim, worker.directions.data() + r * p_.dim);
        }
        MlpBatch<T> batch{};
        batch.rows = rows;
        batch.x = worker.points.data();
        batch.x_tangent = worker.directions.data();
        batch.uniform_cotangent = T(1);
        batch.last = Function::identity;
        Tile<T>(MlpPass::second, false, critic_.layers, *worker.second, batch).run(0, rows, sums, nullptr);
    }

    double map_gradient(uint32_t step) {
        if (p_.rest) ask_rest(step);
        each_chunk(map_chunks_, [&](Worker& worker, const Chunk& chunk, size_t c) {
            std::fill_n(map_sums_[c], map_.size, T(0));
            double total = 0;
            each_tile(chunk, [&](int64_t r, int64_t rows) { total += map_tile(worker, step, r, rows, map_sums_[c]); });
            totals_[c] = total;
        });
        return sum_of_totals(map_chunks_.size()) + (p_.with_log_mu ? p_.map_coefficient * p_.log_norm : 0) +
               rest_value_;
    }

    // Its share of the map's loss, up to what is added above.
    double map_tile(Worker& worker, uint32_t step, int64_t first, int64_t rows, T* sums) {
        const MapPass<T> map{map_, worker.map};
        const CriticPass<T> critic{critic_, worker.critic, worker.values, worker.cotangents};
        const double weight = p_.map_coefficient / double(p_.batch);
        const int64_t count = rows * stride_;
        const T* x = batch_.anchor_rows(first);
        T *y = worker.y, *g = worker.g, *u = worker.u;
        worker.map.dropout = dropout(map_passes, step, first);
        worker.critic.dropout = dropout(descents, step, first);
        map.forward(batch_.input_rows(first), rows, y);
        const T* seen = y;
        if (whitening_) {
            whitening_->apply(y, rows, worker.w);
            seen = worker.w;
        }
        double total = 0;
        if (critic_.layers.empty()) {
            std::fill_n(g, count, T(0));
        } else {
            total = weight * critic.forward(seen, rows, p_.of_model, weight);
            critic.template backward<false>(seen, rows, nullptr, whitening_ ? u : g);
        }
        if (p_.with_log_mu) {  // a constant less half the square of w
            double squares = 0;
            for (int64_t i = 0; i < count; i += lanes<T>) {
                const vec<T> w = load(worker.w + i);
                squares += double(tree_sum<T>(w * w));
                store(u + i, vec<T>(load(u + i) - w * T(weight)));
            }
            total -= weight * squares / 2;
        }
        if (whitening_) {
            std::fill_n(g, count, T(0));
            whitening_->add_pullback(u, rows, g);
        }
        if (density_) total -= weight * density_->add(y, rows, T(-weight), g, worker.scratch);
        if (p_.rest)
            for (int64_t r = 0; r < rows; r++)
                for (int64_t d = 0; d < p_.dim; d++)
                    g[r * stride_ + d] += rest_gradient_.data()[(first + r) * p_.dim + d];
        const double pull = 1 / (p_.step_size * double(p_.batch));
        double moved = 0;
        for (int64_t r = 0; r < rows; r++) {
            vec<T> squares{};
            for (int64_t i = r * stride_; i < (r + 1) * stride_; i += lanes<T>) {
                const vec<T> step = load(y + i) - load(x + i);
                squares += step * step;
                store(g + i, vec<T>(load(g + i) + step * T(pull)));
            }
            moved += double(tree_sum<T>(squares));
        }
        map.backward(batch_.input_rows(first), g, rows, sums);
        return total + moved * pull / 2;
    }

    // It sees the whole batch at once.
    void ask_rest(uint32_t step) {
        each_chunk(map_chunks_, [&](Worker& worker, const Chunk& chunk, size_t) {
            each_tile(chunk, [&](int64_t r, int64_t rows) {
                worker.map.dropout = dropout(map_passes, step, r);
                MapPass<T>{map_, worker.map}.forward(batch_.input_rows(r), rows, worker.y);
                for (int64_t i = 0; i < rows; i++)
                    std::copy_n(worker.y + i * stride_, p_.dim, flat_.data() + (r + i) * p_.dim);
            });
        });
        rest_value_ = p_.rest(flat_.data(), rest_gradient_.data());
    }

    double sum_of_totals(size_t count) const {
        double sum = 0;
        for (size_t c = 0; c < count; c++) sum += totals_[c];
        return sum;
    }

    PrimalDualProblem<T> p_;
    int64_t stride_, tile_[3] = {};
    double row_work_ = 0;  // operations a row and pass
    TrainedNetwork<T> map_, critic_;
    std::unique_ptr<TileDensity<T>> density_;
    std::unique_ptr<Whitening<T>> whitening_;
    Minibatch<T> batch_;
    AlignedArray<T> y_, flat_, rest_gradient_;
    int64_t between_;  // rows of the penalty
    AlignedArray<double> mixing_;
    AlignedArray<T> sums_memory_;
    std::vector<Chunk> map_chunks_, critic_chunks_;
    std::vector<T*> map_sums_, critic_sums_;
    std::vector<double> totals_;
    std::vector<std::unique_ptr<Worker>> workers_;
    int threads_ = 1;
    double rest_value_ = 0;
    uint32_t iteration_ = 0;
};

template <class T> std::unique_ptr<PrimalDual> make_primal_dual(const PrimalDualProblem<T>& problem) {
    return std::make_unique<PrimalDualLoop<T>>(problem);
}

}  // namespace gwf::GWF_ISA
