// What Adam makes of the gradient sums of all blocks.
#pragma once
#include "gpu/primal_dual_network.h"
#include "primal_dual/adam.h"

namespace gwf::gpu {

template <class T> __device__ __forceinline__ Four<T> cold_four(const T* from) {  // as other blocks left it
    Four<T> made;
    GWF_UNROLL_ALL
    for (int i = 0; i < int(4 * sizeof(T) / 16); i++)
        reinterpret_cast<uint4*>(made.v)[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
    return made;
}

template <class T> class BlockUpdate {
  public:
    __device__ explicit BlockUpdate(const Block<T>& block) : block_(block), a_(block.a), turn_(0) {}

    // Where this block's sums go; they are there for the others until its next but one update.
    __device__ T* sums() const { return all_sums() + std::int64_t(blockIdx.x) * a_.layout.partial_size; }

    // Parameters and moments to where the block works on them.
    __device__ void begin() const {
        for (int number = 0; number < 2; number++) {
            const LoopNetwork& at = network(number);
            if (at.resident >= 0) copy(a_.numbers + at.values, block_.memory() + at.resident, at.size);
            if (!everywhere()) continue;
            copy(a_.numbers + at.first, first(number), at.size);
            copy(a_.numbers + at.second, first(number) + at.size, at.size);
        }
        finish_copies();
        slopes(0);
        slopes(1);
    }

    // And back, where each block has them all.
    __device__ void end() const {
        if (!everywhere() || blockIdx.x != 0) return;
        for (int number = 0; number < 2; number++) {
            const LoopNetwork& at = network(number);
            const T *values = block_.memory() + at.resident, *moments = first(number);
            for (int i = int(threadIdx.x); i < at.size; i += int(blockDim.x)) {
                a_.numbers[at.values + i] = values[i];
                a_.numbers[at.first + i] = moments[i];
                a_.numbers[at.second + i] = moments[at.size + i];
            }
        }
    }

    // False where a barrier was given up.
    __device__ bool step(int number, double rate, bool averages) {
        // one thread divides, while others are busy with their sums
        if (threadIdx.x + 1 == blockDim.x) {
            double (&powers)[2] = block_.state().powers[number];
            powers[0] *= a_.adam.beta1;
            powers[1] *= a_.adam.beta2;
            adam() = AdamStep<T>(a_.adam, rate, powers[0], powers[1]);
        }
        if (!block_.meet()) return false;
        if (!(everywhere() ? step_everywhere(number, averages) : step_of_slice(number, averages))) return false;
        slopes(number);
        if (everywhere()) turn_ ^= 1;
        return true;
    }

  private:
    __device__ AdamStep<T>& adam() const {
        static_assert(sizeof(AdamStep<T>) <= sizeof(LoopState::adam));
        return *reinterpret_cast<AdamStep<T>*>(block_.state().adam);
    }
    __device__ bool everywhere() const { return a_.layout.moments >= 0; }
    __device__ const LoopNetwork& network(int number) const { return number ? a_.layout.critic : a_.layout.map; }
    __device__ T* all_sums() const {
        return a_.numbers + a_.layout.partial + turn_ * (std::int64_t(gridDim.x) * a_.layout.partial_size);
    }
    __device__ T* first(int number) const {  // moments; the second follow
        return block_.memory() + a_.layout.moments + (number ? 2 * a_.layout.map.size : 0);
    }
    __device__ static void copy(const T* from, T* to, int count) {
        for (int i = 4 * int(threadIdx.x); i < count; i += 4 * int(blockDim.x)) copy_four(from + i, to + i);
    }

    // Learned slopes to where the layers are described; all threads have their new values.
    __device__ void slopes(int number) const {
        LoopNetwork& net = block_.state().nets[number];
        const LoopNetwork& at = network(number);
        if (int(threadIdx.x) < net.depth) {
            LoopLayer& layer = net.layer[threadIdx.x];
            if (layer.slope >= 0)
                layer.constant = double(at.resident >= 0 ? block_.memory()[at.resident + layer.slope]
                                                         : __ldcg(a_.numbers + at.values + layer.slope));
        }
        __syncthreads();
    }

    __device__ void average(const LoopNetwork& at, int i, T value) const {
        T& mean = a_.numbers[at.average + i];
        mean += T(1 - a_.adam.average) * (value - mean);
    }

    // Each block sums all, and keeps all.
    __device__ __forceinline__ bool step_everywhere(int number, bool averages) {
        const LoopNetwork& at = network(number);
        const int blocks = int(gridDim.x), step = 4 * int(blockDim.x);
        const std::int64_t size = a_.layout.partial_size;
        const T* sums = all_sums();
        T *gradient = block_.memory() + a_.layout.folding, *moments = first(number);
        T* values = block_.memory() + at.resident;
        double squares = 0;
        for (int i = 4 * int(threadIdx.x); i < at.size; i += step) {
            const Four<T> sum = sum_of_blocks(sums + i, 0, blocks, size);
            *reinterpret_cast<Four<T>*>(gradient + i) = sum;
            squares += squares_of(sum);
        }
        T scale = T(1);
        if (a_.adam.clip > 0)
            scale = T(clip_factor(a_.adam.clip, sqrt(block_sum(squares, block_.state().places))));
        else
            __syncthreads();
        const AdamStep<T> adam = this->adam();
        for (int i = 4 * int(threadIdx.x); i < at.size; i += step) {  // a thread's own
            const Four<T> g = four(gradient + i);
            Four<T> m = four(moments + i), v = four(moments + at.size + i), p = four(values + i);
            GWF_UNROLL_ALL
            for (int k = 0; k < 4; k++) adam.update(T(g.v[k] * scale), m.v[k], v.v[k], p.v[k]);
            *reinterpret_cast<Four<T>*>(moments + i) = m;
            *reinterpret_cast<Four<T>*>(moments + at.size + i) = v;
            *reinterpret_cast<Four<T>*>(values + i) = p;
            if (averages && blockIdx.x == 0)
                for (int k = 0; k < 4; k++) average(at, i + k, p.v[k]);
        }
        __syncthreads();
        return true;
    }

    // Each block sums its slice, whose parameters the others copy.
    __device__ __forceinline__ bool step_of_slice(int number, bool averages) {
        const LoopNetwork& at = network(number);
        const int blocks = int(gridDim.x), share = in_fours((at.size + blocks - 1) / blocks);
        const int begin = int(blockIdx.x) * share, end = begin + share < at.size ? begin + share : at.size;
        T* sums = all_sums();  // those of the first block become the gradient
        const double squares = add_blocks(sums, begin, end);
        T scale = T(1);
        if (a_.adam.clip > 0) {
            const double mine = block_sum(squares, block_.state().places);
            if (threadIdx.x == 0) a_.norms[blockIdx.x] = mine;
            if (!block_.meet()) return false;
            double total = 0;  // each warp the same
            for (int b = int(threadIdx.x) % 32; b < blocks; b += 32) total += __ldcg(a_.norms + b);
            scale = T(clip_factor(a_.adam.clip, sqrt(warp_sum(total))));
        } else {
            __syncthreads();
        }
        const AdamStep<T> adam = this->adam();
        T *values = a_.numbers + at.values, *first = a_.numbers + at.first, *second = a_.numbers + at.second;
        for (int i = begin + int(threadIdx.x); i < end; i += int(blockDim.x)) {
            T m = first[i], v = second[i], p = values[i];
            adam.update(T(sums[i] * scale), m, v, p);
            first[i] = m;
            second[i] = v;
            values[i] = p;
            if (averages) average(at, i, p);
        }
        if (!block_.meet()) return false;
        if (at.resident >= 0) copy(values, block_.memory() + at.resident, at.size);
        finish_copies();
        return true;
    }

    __device__ static Four<T> sum_of_blocks(const T* from, int begin, int end, std::int64_t size) {
        Four<T> sum{};
        GWF_UNROLL(8)
        for (int b = begin; b < end; b++) {
            const Four<T> part = cold_four(from + b * size);
            GWF_UNROLL_ALL
            for (int k = 0; k < 4; k++) sum.v[k] += part.v[k];
        }
        return sum;
    }

    __device__ static double squares_of(const Four<T>& sum) {
        double squares = 0;
        GWF_UNROLL_ALL
        for (int k = 0; k < 4; k++) squares += double(sum.v[k]) * double(sum.v[k]);
        return squares;
    }

    // The gradient in begin ... end - 1, in the place of the first block's sums; the sum of this thread's squares. Each
    // four's terms are shared by as many threads as there are, and added in the order of blocks.
    __device__ double add_blocks(T* sums, int begin, int end) const {
        const std::int64_t size = a_.layout.partial_size;
        const int fours = (end - begin) / 4, threads = int(blockDim.x), thread = int(threadIdx.x);
        const int blocks = int(gridDim.x);
        if (fours <= 0) return 0;
        double squares = 0;
        int lines = fours < threads ? threads / fours : 1;
        lines = lines < blocks ? lines : blocks;
        auto* parts = reinterpret_cast<Four<T>*>(block_.memory() + a_.layout.folding);
        const int each = (blocks + lines - 1) / lines;
        for (int start = 0; start < fours; start += threads) {  // more than once with one line only
            const int i = lines > 1 ? thread % fours : start + thread, line = lines > 1 ? thread / fours : 0;
            Four<T> sum{};
            if (i < fours && line < lines) {
                const int last = (line + 1) * each < blocks ? (line + 1) * each : blocks;
                sum = sum_of_blocks(sums + begin + 4 * i, line * each, last, size);
            }
            if (lines > 1) {
                parts[thread] = sum;
                __syncthreads();
                if (thread < fours) {
                    sum = Four<T>{};
                    for (int k = 0; k < lines; k++) {
                        const Four<T> part = parts[k * fours + thread];
                        GWF_UNROLL_ALL
                        for (int m = 0; m < 4; m++) sum.v[m] += part.v[m];
                    }
                }
            }
            if (i < fours && line == 0) {
                *reinterpret_cast<Four<T>*>(sums + begin + 4 * i) = sum;
                squares += squares_of(sum);
            }
        }
        return squares;
    }

    Block<T> block_;
    const LoopArguments<T>& a_;
    int turn_;
};

}  // namespace gwf::gpu
