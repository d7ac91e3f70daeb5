// The loop itself, as csrc/primal_dual_entry.h has it for the CPU: what one block does.
#pragma once
#include "primal_dual_density.h"

namespace gwf::gpu {

template <class T> class BlockLoop {
  public:
    __device__ BlockLoop(const LoopArguments<T>& a, T* memory)
        : a_(a),
          block_{a, memory, GridBarrier(a.arrivals, a.failure, a.layout.cluster), nullptr},
          map_(block_, a.layout.map, 0, a.map_powers),
          critic_(block_, a.layout.critic, 1, a.critic_powers),
          g_(memory + a.layout.cotangents),
          spare_(memory + a.layout.spare),
          stride_(padded(a.dim)),
          first_(std::int64_t(blockIdx.x) * a.layout.chunk),
          models_(rows_of(a.batch)),
          targets_(rows_of(a.target_batch)),
          between_(rows_of(a.penalty > 0 ? (a.batch < a.target_batch ? a.batch : a.target_batch) : 0)) {
        block_.flag = reinterpret_cast<int*>(block_.doubles() + 32);
    }

    __device__ void run() {
        begin();
        for (std::int64_t j = 0; j < a_.count; j++) {
            iteration_ = std::uint32_t(a_.first + j);
            const double rate = a_.schedule[a_.first + j];
            draw();
            push_batch();
            double* losses = a_.losses + (j * gridDim.x + blockIdx.x) * 2;
            for (int i = 0; i < a_.critic_steps; i++) {
                double logarithm = 0;
                if (a_.log_mean && !log_mean_exp(logarithm)) return;
                report(critic_gradient(logarithm, std::uint32_t(i)), losses + 1);
                if (!critic_.update(a_.critic_rate * rate, false)) return;
            }
            for (int i = 0; i < a_.map_steps; i++) {
                report(map_gradient(), losses);
                if (!map_.update(a_.map_rate * rate, a_.adam.average > 0)) return;
            }
        }
    }

  private:
    static constexpr std::uint32_t particle_stream = 0;

    __device__ int rows_of(std::int64_t rows) const {
        const std::int64_t left = rows - first_;
        return left <= 0 ? 0 : left < a_.layout.chunk ? int(left) : a_.layout.chunk;
    }

    __device__ void begin() {
        map_.clear();
        critic_.clear();
        const int points = (a_.layout.spare - a_.layout.cotangents);
        for (int i = int(threadIdx.x); i < points; i += int(blockDim.x)) g_[i] = spare_[i] = T(0);
        for (const LoopAffine* affine : {&a_.layout.whitening, &a_.layout.density})
            for (int i = int(threadIdx.x); affine->resident >= 0 && i < in_fours(a_.dim) * stride_;
                 i += int(blockDim.x))
                block_.memory[affine->resident + i] = a_.numbers[affine->at + i];
        map_.refresh();
        critic_.refresh();
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
        for (int i = int(threadIdx.x); i < rows * dim; i += int(blockDim.x)) {
            const int r = i / dim, c = i % dim;
            to[r * stride + c] = from(r)[c];
        }
        __syncthreads();
    }

    // T(u) of rows begin, ... of the batch to map_.output(), and what the critic sees of it to its input.
    __device__ __noinline__ void push(int begin, int rows) {
        load_rows(rows, a_.input_dim, map_.input(),
                  [&](int r) { return a_.inputs + a_.rows[first_ + begin + r] * a_.input_dim; });
        map_.forward(rows);
        if (a_.layout.whitening.at >= 0) {
            apply_affine(block_, a_.layout.whitening, map_.output(), rows, critic_.input());
        } else {
            load_rows(rows, a_.dim, critic_.input(), [&](int r) { return map_.output() + r * stride_; });
        }
    }

    __device__ void push_batch() {
        for (int begin = 0; begin < models_; begin += map_.net.rows) {
            const int rows = tile(begin, models_, map_.net.rows);
            push(begin, rows);
            for (int i = int(threadIdx.x); i < rows * a_.dim; i += int(blockDim.x))
                point(begin)[i] = critic_.input()[i / a_.dim * stride_ + i % a_.dim];
            __syncthreads();
        }
    }

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
        for (int begin = 0; begin < targets_; begin += critic_.net.rows) {
            const int rows = tile(begin, targets_, critic_.net.rows);
            load_rows(rows, a_.dim, critic_.input(), [&](int r) { return target(begin + r); });
            critic_.forward(rows);
            for (int r = int(threadIdx.x); r < rows; r += int(blockDim.x))
                outputs[first_ + begin + r] = critic_.last_product()[r * critic_.output_stride()];
            __syncthreads();
        }
        if (!block_.meet()) return false;
        T largest = __ldcg(outputs);
        for (std::int64_t r = threadIdx.x; r < a_.target_batch; r += blockDim.x)
            largest = larger(largest, __ldcg(outputs + r));
        for (int bit = 16; bit > 0; bit /= 2) largest = larger(largest, exchanged(largest, bit));
        double* places = block_.doubles();
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
        const int all = models_ + targets_, stride = critic_.output_stride();
        double total = 0;
        for (int begin = 0; begin < all; begin += critic_.net.rows) {
            const int rows = tile(begin, all, critic_.net.rows);
            if (step == 0 || alters_input() || all > rows) load_sides(begin, rows);  // else they are still there
            critic_.forward(rows);
            for (int r = int(threadIdx.x); r < rows; r += int(blockDim.x)) {
                const bool is_model = begin + r < models_;
                const Elementwise f = is_model ? a_.of_model : tamed;
                const double weight = is_model ? of_models : of_targets;
                T& at = critic_.last_product()[r * stride];
                const Jet<T> jet = any_jet<true>(f.function, at, T(f.constant));
                at = jet.first * T(weight);
                if (is_model || !a_.log_mean) total += weight * double(jet.value);
            }
            __syncthreads();
            critic_.backward(rows, true, begin > 0, nullptr);
        }
        for (int begin = 0; begin < between_; begin += critic_.net.rows)
            total += penalty_tile(begin, tile(begin, between_, critic_.net.rows), step);
        return blockIdx.x == 0 && threadIdx.x == 0 ? total + a_.coefficient * logarithm : total;
    }

    // Whether an ascent brings other rows than those of the two sides to the critic.
    __device__ bool alters_input() const { return a_.log_mean || a_.penalty > 0; }

    // lambda E (|grad h| - 1)^2 between the sides: with g = grad h and t the penalty's gradient in g, the gradient in
    // the parameters is that of <t, g> with t fixed.
    __device__ double penalty_tile(int begin, int rows, std::uint32_t step) {
        const Draw mixing{a_.seed, iteration_, a_.penalty_stream + step};
        for (int i = int(threadIdx.x); i < rows * a_.dim; i += int(blockDim.x)) {
            const int r = i / a_.dim, c = i % a_.dim;
            const T e = T(mixing.uniform(first_ + begin + r)), z = target(begin + r)[c];
            critic_.input()[r * stride_ + c] = z + (point(begin + r)[c] - z) * e;
        }
        __syncthreads();
        critic_.forward(rows);
        critic_.gradient(rows, spare_);
        const double all = double(a_.batch < a_.target_batch ? a_.batch : a_.target_batch);
        const double weight = a_.coefficient * a_.penalty / all;
        const int lane = int(threadIdx.x) % 32, warps = int(blockDim.x) / 32;
        double total = 0;
        for (int r = int(threadIdx.x) / 32; r < rows; r += warps) {  // a row is a warp
            T squares = 0;
            for (int d = lane; d < a_.dim; d += 32) squares += spare_[r * stride_ + d] * spare_[r * stride_ + d];
            const double norm = sqrt(double(warp_sum(squares))), excess = norm - 1;
            const T scale = norm > 0 ? T(2 * weight * excess / norm) : T(0);
            if (lane == 0) total += weight * excess * excess;
            for (int d = lane; d < a_.dim; d += 32) spare_[r * stride_ + d] *= scale;
        }
        __syncthreads();
        critic_.add_gradient_along(spare_, rows);
        return total;
    }

    // This thread's part of the map's loss.
    __device__ double map_gradient() {
        double total = 0;
        for (int begin = 0; begin < models_; begin += map_.net.rows)
            total += map_tile(begin, tile(begin, models_, map_.net.rows));
        const bool adds = a_.with_log_mu && blockIdx.x == 0 && threadIdx.x == 0;
        return adds ? total + a_.map_coefficient * a_.log_norm : total;
    }

    __device__ double map_tile(int begin, int rows) {
        const double weight = a_.map_coefficient / double(a_.batch);
        const bool whitens = a_.layout.whitening.at >= 0;
        double total = 0;
        push(begin, rows);
        critic_.forward(rows);
        for (int r = int(threadIdx.x); r < rows; r += int(blockDim.x)) {
            T& at = critic_.last_product()[r * critic_.output_stride()];
            const Jet<T> jet = any_jet<true>(a_.of_model.function, at, T(a_.of_model.constant));
            at = jet.first * T(weight);
            total += weight * double(jet.value);
        }
        __syncthreads();
        T* u = whitens ? spare_ : g_;
        critic_.backward(rows, false, false, u);
        if (a_.with_log_mu) {  // a constant less half the square of what the critic sees
            total += weight * half_squares(critic_.input(), a_.dim, rows, false, T(1));
            for (int i = int(threadIdx.x); i < rows * a_.dim; i += int(blockDim.x)) {
                const int at = i / a_.dim * stride_ + i % a_.dim;
                u[at] -= T(weight) * critic_.input()[at];
            }
            __syncthreads();
        }
        if (whitens) pull_back_affine(block_, a_.layout.whitening, spare_, rows, g_, Store::product);
        total -= weight * add_density(rows, T(-weight));
        total += approach(begin, rows);
        map_.backward(rows, true, begin > 0, nullptr);
        return total;
    }

    // This thread's part of the sum of log Q; factor times its gradient is added to g.
    __device__ double add_density(int rows, T factor) {
        const Density<T>& density = a_.density;
        double total = 0;
        if (density.kind == DensityKind::gaussian) {
            apply_affine(block_, a_.layout.density, map_.output(), rows, spare_);
            total = half_squares(spare_, a_.dim, rows, true, -factor);
            __syncthreads();
            pull_back_affine(block_, a_.layout.density, spare_, rows, g_, Store::sum);
            for (int r = int(threadIdx.x); r < rows; r += int(blockDim.x)) total += density.rate;
        } else if (density.kind == DensityKind::mixture) {
            total = add_mixture(density, map_.output(), a_.dim, stride_, rows, factor, g_);
            __syncthreads();
        } else if (density.kind == DensityKind::logistic) {
            total = add_logistic(block_, map_.output(), rows, factor, g_, spare_);
        }
        return total;
    }

    // The pull towards the anchors; the cotangent of the map's last product takes its place.
    __device__ double approach(int begin, int rows) {
        const double pull = 1 / (a_.step_size * double(a_.batch));
        const LoopLayer& last = map_.net.layer[map_.net.depth - 1];
        double moved = 0;
        for (int i = int(threadIdx.x); i < rows * a_.dim; i += int(blockDim.x)) {
            const int r = i / a_.dim, c = i % a_.dim, at = r * stride_ + c;
            const T x = a_.anchors ? a_.anchors[a_.rows[first_ + begin + r] * a_.dim + c] : map_.input()[at];
            const T step = map_.output()[at] - x;
            moved += double(step) * double(step);
            T& z = map_.last_product()[at];
            z = (g_[at] + step * T(pull)) * hidden_jet(last.function, z, T(last.constant)).first;
        }
        __syncthreads();
        return moved * pull / 2;
    }

    __device__ void report(double part, double* to) const {
        const double sum = block_sum(part, block_.doubles());
        if (threadIdx.x == 0) *to = sum;
    }

    const LoopArguments<T>& a_;
    Block<T> block_;
    BlockNetwork<T> map_, critic_;
    T *g_, *spare_;
    int stride_;
    std::int64_t first_;
    int models_, targets_, between_;  // rows of this block
    std::uint32_t iteration_ = 0;
};

}  // namespace gwf::gpu
