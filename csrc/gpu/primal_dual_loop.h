// The loop itself, as csrc/primal_dual/entry.h has it for the CPU: what one block does.
#pragma once
#include "gpu/primal_dual_density.h"
#include "gpu/primal_dual_update.h"

namespace gwf::gpu {

// P: Tiles or Lanes (lanes.h).
template <class T, class P> class BlockLoop {
  public:
    __device__ explicit BlockLoop(const LoopArguments<T>& a)
        : a_(a),
          block_(a),
          map_(block_, 0),
          critic_(block_, 1),
          updates_(block_),
          g_(block_.memory() + a.layout.cotangents),
          spare_(block_.memory() + a.layout.spare),
          stride_(padded(a.dim)),
          first_(std::int64_t(blockIdx.x) * a.layout.chunk),
          models_(rows_of(a.batch)),
          targets_(rows_of(a.target_batch)),
          between_(rows_of(a.penalty > 0 ? (a.batch < a.target_batch ? a.batch : a.target_batch) : 0)) {}

    __device__ void run() {
        begin();
        for (std::int64_t j = 0; j < a_.count; j++) {
            iteration_ = std::uint32_t(a_.first + j);
            const double rate = a_.schedule[a_.first + j];
            draw();
            push_batch();
            double* losses = a_.losses + (j * gridDim.x + blockIdx.x) * 2;
            // one place of each update, however many there are: its code is large
            for (int i = 0; i < a_.critic_steps + a_.map_steps; i++) {
                const bool of_map = i >= a_.critic_steps;
                if (of_map) {
                    const double loss = map_gradient();
                    if (i + 1 == a_.critic_steps + a_.map_steps) report(loss, losses);
                    map_.gather_slopes(updates_.sums());
                } else {
                    double logarithm = 0;
                    if (a_.log_mean && !log_mean_exp(logarithm)) return;
                    const double loss = critic_gradient(logarithm, std::uint32_t(i));
                    if (i + 1 == a_.critic_steps) report(loss, losses + 1);
                    critic_.gather_slopes(updates_.sums());
                }
                if (!updates_.step(of_map ? 0 : 1, (of_map ? a_.map_rate : a_.critic_rate) * rate,
                                   of_map && a_.adam.average > 0))
                    return;
            }
        }
        updates_.end();
    }

  private:
    static constexpr std::uint32_t particle_stream = 0;

    __device__ int rows_of(std::int64_t rows) const {
        const std::int64_t left = rows - first_;
        return left <= 0 ? 0 : left < a_.layout.chunk ? int(left) : a_.layout.chunk;
    }

    __device__ void begin() {
        LoopState& state = block_.state();
        for (int number = 0; number < 2; number++) {
            const LoopNetwork& net = number ? a_.layout.critic : a_.layout.map;
            for (int l = int(threadIdx.x); l < net.depth; l += int(blockDim.x))
                state.nets[number].layer[l] = net.layer[l];
            if (threadIdx.x != 0) continue;
            LoopNetwork& to = state.nets[number];
            to.depth = net.depth, to.output = net.output, to.residual = net.residual, to.used = net.used;
            to.size = net.size, to.weights = net.weights, to.rows = net.rows, to.resident = net.resident;
            for (int i = 0; i < 2; i++) state.powers[number][i] = (number ? a_.critic_powers : a_.map_powers)[i];
            state.expected = 0;
        }
        __syncthreads();
        map_.clear();
        critic_.clear();
        const int points = (a_.layout.spare - a_.layout.cotangents);
        for (int i = int(threadIdx.x); i < points; i += int(blockDim.x)) g_[i] = spare_[i] = T(0);
        for (const LoopAffine* affine : {&a_.layout.whitening, &a_.layout.density})
            for (int i = int(threadIdx.x); affine->resident >= 0 && i < in_fours(a_.dim) * stride_;
                 i += int(blockDim.x))
                block_.memory()[affine->resident + i] = a_.numbers[affine->at + i];
        updates_.begin();
    }

    // The block's part of a batch: which rows of the pools, and normals.
    __device__ void draw() const {
        const Draw particles{a_.seed, iteration_, particle_stream}, targets{a_.seed, iteration_, a_.target_stream};
        for (int r = int(threadIdx.x); r < models_; r += int(blockDim.x))
            a_.rows[first_ + r] = a_.whole_pool ? first_ + r : particles.index(first_ + r, a_.pool_size);
        if (a_.target_kind == TargetKind::normal) {
            T* to = a_.numbers + a_.layout.targets;
            const std::int64_t begin = first_ * a_.dim;
            for (int i = int(threadIdx.x); i < targets_ * a_.dim; i += int(blockDim.x))
                to[begin + i] = targets.template normal<T>(begin + i);
        } else {
            for (int r = int(threadIdx.x); r < targets_; r += int(blockDim.x))
                a_.rows[a_.batch + first_ + r] =
                    a_.target_kind == TargetKind::whole ? first_ + r : targets.index(first_ + r, a_.target_size);
        }
        __syncthreads();
    }

    __device__ T* point(int r) const { return a_.numbers + a_.layout.points + (first_ + r) * a_.dim; }
    __device__ const T* target(int r) const {
        if (a_.target_kind == TargetKind::normal) return a_.numbers + a_.layout.targets + (first_ + r) * a_.dim;
        return a_.target + a_.rows[a_.batch + first_ + r] * a_.dim;
    }

    // Rows to [rows][stride]: from(r) gives the address of row r.
    template <class From> __device__ void load_rows(int rows, int dim, T* to, From&& from) const {
        const int stride = padded(dim);
        group().each(rows, dim, [&](int r, int c) { to[r * stride + c] = from(r)[c]; });
        P::sync();
    }

    // T(u) of rows begin, ... of the batch to map_.output(), and what the critic sees of it to its input. The inputs of
    // the only tile stay where they are.
    __device__ void push(int begin, int rows, bool load) {
        if (load || models_ > rows)
            load_rows(rows, a_.input_dim, map_.input(),
                      [&](int r) { return a_.inputs + a_.rows[first_ + begin + r] * a_.input_dim; });
        map_.forward(rows);
        if (a_.layout.whitening.at >= 0) {
            apply_affine<P>(block_, a_.layout.whitening, map_.output_place(), rows, critic_.input_place());
        } else {
            load_rows(rows, a_.dim, critic_.input(), [&](int r) { return map_.output() + r * stride_; });
        }
    }

    __device__ void push_batch() {
        const int most = a_.layout.map.rows;
        for (int begin = 0; begin < models_; begin += most) {
            const int rows = tile(begin, models_, most);
            push(begin, rows, true);
            group().each(rows, a_.dim, [&](int r, int c) { point(begin + r)[c] = critic_.input()[r * stride_ + c]; });
            __syncthreads();
        }
    }

    __device__ const RowGroup& group() const { return block_.rows; }
    __device__ static int tile(int begin, int end, int most) { return end - begin < most ? end - begin : most; }

    // The critic at the block's particles and samples, which follow on each other.
    __device__ void load_sides(int begin, int rows) const {
        load_rows(rows, a_.dim, critic_.input(), [&](int r) -> const T* {
            const int q = begin + r;
            return q < models_ ? point(q) : target(q - models_);
        });
    }

    // log E e^h(z), from all blocks' rows; false where a barrier was given up.
    __device__ bool log_mean_exp(double& logarithm) {
        T* outputs = a_.numbers + a_.layout.outputs;
        const int places_of_rows = a_.layout.critic.rows;
        for (int begin = 0; begin < targets_; begin += places_of_rows) {
            const int rows = tile(begin, targets_, places_of_rows);
            load_rows(rows, a_.dim, critic_.input(), [&](int r) { return target(begin + r); });
            critic_.forward(rows);
            group().each_row(rows, [&](int r) {
                outputs[first_ + begin + r] = critic_.last_product()[r * critic_.output_stride()];
            });
            __syncthreads();
        }
        if (!block_.meet()) return false;
        T largest = __ldcg(outputs);
        for (std::int64_t r = threadIdx.x; r < a_.target_batch; r += blockDim.x)
            largest = larger(largest, __ldcg(outputs + r));
        for (int bit = 16; bit > 0; bit /= 2) largest = larger(largest, exchanged(largest, bit));
        double* places = block_.state().places;
        if (threadIdx.x % 32 == 0) places[threadIdx.x / 32] = double(largest);
        __syncthreads();
        double most = places[0];
        for (int w = 1; w < int(blockDim.x) / 32; w++) most = larger(most, places[w]);
        double sum = 0;
        for (std::int64_t r = threadIdx.x; r < a_.target_batch; r += blockDim.x)
            sum += exp(double(__ldcg(outputs + r)) - most);
        logarithm = most + log(block_sum(sum, places) / double(a_.target_batch));
        return true;
    }

    // This thread's part of minus the critic's objective; its gradient goes to the block's sums.
    __device__ double critic_gradient(double logarithm, std::uint32_t step) {
        const double of_models = -a_.coefficient / double(a_.batch);
        const double of_targets = a_.coefficient / double(a_.target_batch);
        const Elementwise tamed =
            a_.log_mean ? Elementwise{Function::exp_shifted, logarithm} : a_.of_target;  // d log E e^h = E e^(h - l) dh
        const int all = models_ + targets_, most = a_.layout.critic.rows, stride = critic_.output_stride();
        double total = 0;
        for (int begin = 0; begin == 0 || begin < all; begin += most) {
            const int rows = tile(begin, all, most);
            if (begin > 0) __syncthreads();
            if (step == 0 || alters_input() || all > rows) load_sides(begin, rows);  // else they are still there
            critic_.forward(rows);
            group().each_row(rows, [&](int r) {
                const bool is_model = begin + r < models_;
                const Elementwise f = is_model ? a_.of_model : tamed;
                const double weight = is_model ? of_models : of_targets;
                T& at = critic_.last_product()[r * stride];
                const Jet<T> jet = any_jet<true>(f.function, at, T(f.constant));
                at = jet.first * T(weight);
                if (is_model || !a_.log_mean) total += weight * double(jet.value);
            });
            P::sync();
            critic_.backward(rows, true, -1);
            critic_.gradients(rows, updates_.sums(), begin > 0);
        }
        for (int begin = 0; begin < between_; begin += most)
            total += penalty_tile(begin, tile(begin, between_, most), step);
        return blockIdx.x == 0 && threadIdx.x == 0 ? total + a_.coefficient * logarithm : total;
    }

    // Whether an ascent brings other rows than those of the two sides to the critic.
    __device__ bool alters_input() const { return a_.log_mean || a_.penalty > 0; }

    // lambda E (|grad h| - 1)^2 between the sides: with g = grad h and t the penalty's gradient in g, the gradient in
    // the parameters is that of <t, g> with t fixed.
    __device__ double penalty_tile(int begin, int rows, std::uint32_t step) {
        __syncthreads();
        const Draw mixing{a_.seed, iteration_, a_.penalty_stream + step};
        group().each(rows, a_.dim, [&](int r, int c) {
            const T e = T(mixing.uniform(first_ + begin + r)), z = target(begin + r)[c];
            critic_.input()[r * stride_ + c] = z + (point(begin + r)[c] - z) * e;
        });
        P::sync();
        critic_.forward(rows);
        critic_.gradient(rows, a_.layout.spare);
        const double all = double(a_.batch < a_.target_batch ? a_.batch : a_.target_batch);
        const double weight = a_.coefficient * a_.penalty / all;
        double total = 0;
        group().together(rows, [&](int r, bool there) {
            const int lane = group().lane, lanes = group().lanes;
            T squares = 0;
            for (int d = lane; there && d < a_.dim; d += lanes)
                squares += spare_[r * stride_ + d] * spare_[r * stride_ + d];
            const double norm = sqrt(double(group().sum(squares))), excess = norm - 1;
            if (!there) return;
            const T scale = norm > 0 ? T(2 * weight * excess / norm) : T(0);
            if (lane == 0) total += weight * excess * excess;
            for (int d = lane; d < a_.dim; d += lanes) spare_[r * stride_ + d] *= scale;
        });
        P::sync();
        critic_.tangents(a_.layout.spare, rows);
        critic_.gradients(rows, updates_.sums(), true, a_.layout.spare);
        return total;
    }

    // This thread's part of the map's loss; its gradient goes to the block's sums.
    __device__ double map_gradient() {
        const int most = a_.layout.map.rows;
        double total = 0;
        for (int begin = 0; begin == 0 || begin < models_; begin += most)
            total += map_tile(begin, tile(begin, models_, most));
        const bool adds = a_.with_log_mu && blockIdx.x == 0 && threadIdx.x == 0;
        return adds ? total + a_.map_coefficient * a_.log_norm : total;
    }

    __device__ double map_tile(int begin, int rows) {
        const double weight = a_.map_coefficient / double(a_.batch);
        const bool whitens = a_.layout.whitening.at >= 0;
        double total = 0;
        if (begin > 0) __syncthreads();
        push(begin, rows, false);
        critic_.forward(rows);
        group().each_row(rows, [&](int r) {
            T& at = critic_.last_product()[r * critic_.output_stride()];
            const Jet<T> jet = any_jet<true>(a_.of_model.function, at, T(a_.of_model.constant));
            at = jet.first * T(weight);
            total += weight * double(jet.value);
        });
        P::sync();
        const int place = whitens ? a_.layout.spare : a_.layout.cotangents;
        T* u = block_.memory() + place;
        critic_.backward(rows, false, place);
        if (a_.with_log_mu) {  // a constant less half the square of what the critic sees
            group().each(rows, a_.dim, [&](int r, int c) {
                const T v = critic_.input()[r * stride_ + c];
                total -= weight * double(v) * double(v) / 2;
                u[r * stride_ + c] -= T(weight) * v;
            });
            P::sync();
        }
        if (whitens)
            pull_back_affine<P>(block_, a_.layout.whitening, a_.layout.spare, rows, a_.layout.cotangents,
                                Store::product);
        total -= weight * add_density(rows, T(-weight));
        total += approach(begin, rows);
        map_.backward(rows, true, -1);
        map_.gradients(rows, updates_.sums(), begin > 0);
        return total;
    }

    // This thread's part of the sum of log Q; factor times its gradient is added to g.
    __device__ double add_density(int rows, T factor) {
        const LoopDensity<T>& density = a_.density;
        double total = 0;
        if (density.kind == DensityKind::gaussian) {
            apply_affine<P>(block_, a_.layout.density, map_.output_place(), rows, a_.layout.spare);
            group().each(rows, a_.dim, [&](int r, int c) {
                T& at = spare_[r * stride_ + c];
                total -= double(at) * double(at) / 2;
                at *= -factor;
            });
            P::sync();
            pull_back_affine<P>(block_, a_.layout.density, a_.layout.spare, rows, a_.layout.cotangents, Store::sum);
            group().each_row(rows, [&](int) { total += density.number; });
        } else if (density.kind == DensityKind::mixture) {
            total =
                add_mixture(density, group(), map_.output_place(), a_.dim, stride_, rows, factor, a_.layout.cotangents);
            P::sync();
        } else if (density.kind == DensityKind::logistic) {
            total = add_logistic<P>(block_, map_.output_place(), rows, factor);
        }
        return total;
    }

    // The pull towards the anchors; the cotangent of the map's last product takes its place.
    __device__ double approach(int begin, int rows) {
        const double pull = 1 / (a_.step_size * double(a_.batch));
        const LoopLayer& last = a_.layout.map.layer[a_.layout.map.depth - 1];
        double moved = 0;
        group().each(rows, a_.dim, [&](int r, int c) {
            const int at = r * stride_ + c;
            const T x = a_.anchors ? a_.anchors[a_.rows[first_ + begin + r] * a_.dim + c] : map_.input()[at];
            const T step = map_.output()[at] - x;
            moved += double(step) * double(step);
            T& z = map_.last_product()[at];
            z = (g_[at] + step * T(pull)) * hidden_jet(last.function, z, T(last.constant)).first;
        });
        P::sync();
        return moved * pull / 2;
    }

    __device__ void report(double part, double* to) const {
        const double sum = block_sum(part, block_.state().places);
        if (threadIdx.x == 0) *to = sum;
    }

    const LoopArguments<T>& a_;
    Block<T> block_;
    BlockNetwork<T, P> map_, critic_;
    BlockUpdate<T> updates_;
    T *g_, *spare_;
    int stride_;
    std::int64_t first_;
    int models_, targets_, between_;  // rows of this block
    std::uint32_t iteration_ = 0;
};

}  // namespace gwf::gpu
