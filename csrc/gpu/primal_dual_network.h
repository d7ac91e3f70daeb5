// A network in training inside a block: its tile of rows forward and back, and Adam on the block's slice.
#pragma once
#include "../primal_dual_adam.h"
#include "barrier.h"
#include "block.h"
#include "primal_dual.h"

namespace gwf::gpu {

// What a block knows: where it works, and with whom.
template <class T> struct Block {
    const LoopArguments<T>& a;
    T* memory;  // shared
    GridBarrier barrier;
    int* flag;  // in shared memory

    __device__ double* doubles() const {
        return reinterpret_cast<double*>(reinterpret_cast<char*>(memory) + a.layout.reduction);
    }
    __device__ bool meet() { return barrier.wait(flag); }

    // Weights as the products read them. Those that don't stay in shared memory are brought there, by all threads.
    __device__ const T* weights(int resident, std::int64_t at, int count) const {
        if (resident >= 0) return memory + resident;
        T* to = memory + a.layout.staging;
        const T* from = a.numbers + at;
        for (int i = 4 * int(threadIdx.x); i < count; i += 4 * int(blockDim.x)) copy_four(from + i, to + i);
        finish_copies();
        return to;
    }

    // As other blocks left it, which the first cache may not know. Many copies are on their way at a time, until
    // finish_copies().
    __device__ static void copy_four(const T* from, T* to) {
        GWF_UNROLL_ALL
        for (int i = 0; i < int(4 * sizeof(T) / 16); i++) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                             unsigned(__cvta_generic_to_shared(reinterpret_cast<uint4*>(to) + i))),
                         "l"(__cvta_generic_to_global(reinterpret_cast<const uint4*>(from) + i))
                         : "memory");
#else
            reinterpret_cast<uint4*>(to)[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
#endif
        }
    }
    __device__ static void finish_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        asm volatile("cp.async.wait_all;" ::: "memory");
#endif
        __syncthreads();
    }
};

// ---- the products with what becomes of them: one copy of each, however many places use it
// ----------------------------

// to = f(a w' + bias) + added; z the product itself.
template <class T> struct StoreForward {
    T* z;  // null: not kept
    T* to;
    const T* added;             // null: nothing
    int stride, rows, columns;  // of all three
    Function function;
    T constant;

    __device__ void operator()(int r, int c, T value) const {
        if (r >= rows || c >= columns) return;
        const int at = r * stride + c;
        const T result = hidden_jet(function, value, constant).value;
        if (z) z[at] = value;
        to[at] = added ? added[at] + result : result;
    }
};

// bias: whether the rows of w end in one that isn't among the terms.
template <class T>
__device__ __noinline__ void multiply_forward(const T* a, int stride, const T* w, int in, StoreForward<T> finish) {
    GWF_SHARED(finish.to);
    multiply<true>(a, stride, w, stride, in_fours(in), finish.rows, finish.columns, in % 4 ? -1 : in, finish);
}

enum class Store { product, sum, derivative };

// The product; the product added to what stood there; or f'(v) times it.
template <class T> struct StoreBackward {
    T* to;
    const T* v;
    int stride, rows, columns;
    Store store;
    Function function;
    T constant;
    T slope_sum;

    __device__ void operator()(int r, int c, T u) {
        if (r >= rows || c >= columns) return;
        const int at = r * stride + c;
        if (store == Store::derivative) {
            const T z = v[at];
            if (!(z > T(0))) slope_sum += u * z;
            to[at] = u * hidden_jet(function, z, constant).first;
        } else {
            to[at] = store == Store::sum ? to[at] + u : u;
        }
    }
};

// d w; returns this thread's part of the gradient in a slope.
template <class T>
__device__ __noinline__ T multiply_backward(const T* d, int stride, const T* w, int width, int out,
                                            StoreBackward<T> finish) {
    GWF_SHARED(finish.to);
    multiply<false>(d, stride, w, width, in_fours(out), finish.rows, finish.columns, -1, finish);
    return finish.slope_sum;
}

// The tangent of a leaky unit's value, the product that of its input; sums the slope's part, up to what `u` lacks.
template <class T> struct StoreTangent {
    T* to;
    const T *z, *u;
    int stride, rows, columns;
    T slope, slope_sum;

    __device__ void operator()(int r, int c, T value) {
        if (r >= rows || c >= columns) return;
        const int at = r * stride + c;
        const bool above = z[at] > T(0);
        if (!above) slope_sum += value * u[at];
        to[at] = above ? value : value * slope;
    }
};

// Without the bias.
template <class T>
__device__ __noinline__ void multiply_tangent(const T* a, int stride, const T* w, int in, StoreTangent<T>& finish) {
    multiply<true>(a, stride, w, stride, in_fours(in), finish.rows, finish.columns, -1, finish);
}

// ---- the network ---------------------------------------------------------------------------------------------------

template <class T> struct BlockNetwork {
    Block<T>& block;
    const LoopNetwork& net;
    T *activations, *constants, *slots;
    double power1, power2;  // beta^t of the updates done

    __device__ BlockNetwork(Block<T>& block, const LoopNetwork& net, int number, const double* powers)
        : block(block),
          net(net),
          activations(block.memory + net.shared),
          constants(block.memory + block.a.layout.constants + number * most_layers),
          slots(block.memory + block.a.layout.slots),
          power1(powers[0]),
          power2(powers[1]) {}

    __device__ T* input() const { return activations + net.layer[0].a; }
    __device__ T* output() const { return activations + net.output; }
    __device__ T* last_product() const { return activations + net.layer[net.depth - 1].z; }
    __device__ int output_stride() const { return net.layer[net.depth - 1].out_stride; }
    __device__ T* partial() const {
        return block.a.numbers + block.a.layout.partial + std::int64_t(blockIdx.x) * block.a.layout.partial_size;
    }
    __device__ const T* weights(const LoopLayer& layer) const {
        return block.weights(net.resident < 0 ? -1 : net.resident + layer.weight, net.values + layer.weight,
                             layer.weights());
    }
    __device__ T* product(int l) const { return activations + net.layer[l].z; }
    __device__ T* next_input(int l) const { return l + 1 < net.depth ? activations + net.layer[l + 1].a : output(); }

    // Zeros, and the ones that stand before a bias: nothing else is written there.
    __device__ void clear() const {
        for (int l = 0; l < net.depth; l++) {
            const LoopLayer& layer = net.layer[l];
            fill_rows(activations + layer.a, layer.in, layer.in_stride);
            fill_rows(activations + layer.z, -1, layer.out_stride);
            if (!layer.d) continue;
            fill_rows(activations + layer.d, -1, layer.out_stride);
            fill_rows(activations + layer.tangent, -1, layer.out_stride);
        }
        fill_rows(output(), net.layer[net.depth - 1].out, output_stride());
        for (int i = int(threadIdx.x); i < most_layers * int(blockDim.x) / 32; i += int(blockDim.x)) slots[i] = T(0);
    }
    __device__ void fill_rows(T* to, int one, int stride) const {
        for (int i = int(threadIdx.x); i < net.rows * stride; i += int(blockDim.x)) to[i] = T(i % stride == one);
    }

    // The parameters as they are now.
    __device__ void refresh() const {
        const T* values = block.a.numbers + net.values;
        if (net.resident >= 0)
            for (int i = 4 * int(threadIdx.x); i < net.size; i += 4 * int(blockDim.x))
                Block<T>::copy_four(values + i, block.memory + net.resident + i);
        if (int(threadIdx.x) < net.depth) {
            const LoopLayer& layer = net.layer[threadIdx.x];
            constants[threadIdx.x] = layer.slope < 0 ? T(layer.constant) : __ldcg(values + layer.slope);
        }
        Block<T>::finish_copies();
    }

    // The rows of the input through all layers.
    __device__ __noinline__ void forward(int rows) const {
        for (int l = 0; l < net.depth; l++) {
            const LoopLayer& layer = net.layer[l];
            const T* added = net.residual && l + 1 == net.depth ? input() : nullptr;
            multiply_forward(activations + layer.a, layer.in_stride, weights(layer), layer.in,
                             StoreForward<T>{product(l), next_input(l), added, layer.out_stride, rows, layer.out,
                                             layer.function, constants[l]});
            __syncthreads();
        }
    }

    // From the cotangent of the last product, which stands in its place, down to the first layer. The gradient of the
    // parameters is stored in the block's sums, or added, where it is wanted; the cotangent of the input goes to
    // `of_input`, of the input's stride, where that isn't null.
    __device__ __noinline__ void backward(int rows, bool gradients, bool add, T* of_input) const {
        for (int l = net.depth - 1; l >= 0; l--) {
            const LoopLayer& layer = net.layer[l];
            const T* d = product(l);
            if (gradients)
                multiply_rows(d, layer.out_stride, activations + layer.a, layer.in_stride, rows, in_fours(layer.out),
                              partial() + layer.weight, add);
            StoreBackward<T> finish = through(l, rows, l ? product(l - 1) : of_input);
            if (finish.to) {
                const T sum =
                    multiply_backward(d, layer.out_stride, weights(layer), layer.in_stride, layer.out, finish);
                if (gradients && l > 0 && net.layer[l - 1].slope >= 0) add_slope(l - 1, sum);
            }
            __syncthreads();
        }
    }

    // grad h of a network of leaky units with one output, after forward(rows); the cotangents of the products stay.
    __device__ void gradient(int rows, T* to) const {
        for (int r = int(threadIdx.x); r < rows; r += int(blockDim.x)) last_product()[r * output_stride()] = T(1);
        __syncthreads();
        for (int l = net.depth - 1; l >= 0; l--) {
            const LoopLayer& layer = net.layer[l];
            multiply_backward(cotangent(l), layer.out_stride, weights(layer), layer.in_stride, layer.out,
                              through(l, rows, l ? cotangent(l - 1) : to));
            __syncthreads();
        }
    }

    // After gradient(): adds the gradient of <t, grad h> in the parameters to the block's sums, t fixed. The second
    // derivatives of leaky units are 0: the tangents of the products alone carry it (csrc/primal_dual_penalty.h).
    __device__ void add_gradient_along(const T* t, int rows) const {
        for (int l = 0; l < net.depth; l++) {
            const LoopLayer& layer = net.layer[l];
            const T* d = cotangent(l);
            multiply_rows(d, layer.out_stride, t, layer.in_stride, rows, in_fours(layer.out), partial() + layer.weight,
                          true);
            if (l + 1 == net.depth) break;
            T* tangent = activations + layer.tangent;
            // a slope's derivative takes u in d = slope u
            const bool divides = constants[l] != T(0);
            if (!divides && layer.slope >= 0) {
                const LoopLayer& above = net.layer[l + 1];
                multiply_backward(cotangent(l + 1), above.out_stride, weights(above), above.in_stride, above.out,
                                  StoreBackward<T>{tangent, nullptr, above.in_stride, rows, above.in, Store::product,
                                                   Function::identity, T(0), T(0)});
                __syncthreads();
            }
            StoreTangent<T> finish{tangent, product(l), divides ? d : tangent, layer.out_stride,
                                   rows,    layer.out,  constants[l],          T(0)};
            multiply_tangent(t, layer.in_stride, weights(layer), layer.in, finish);
            if (layer.slope >= 0) add_slope(l, divides ? finish.slope_sum / constants[l] : finish.slope_sum);
            __syncthreads();
            t = tangent;
        }
    }

    // What Adam makes of the sums of all blocks. False where a barrier was given up.
    __device__ __noinline__ bool update(double rate, bool averages) {
        const LoopArguments<T>& a = block.a;
        gather_slopes();
        if (!block.meet()) return false;
        power1 *= a.adam.beta1;
        power2 *= a.adam.beta2;
        const int share = in_fours((net.size + int(gridDim.x) - 1) / int(gridDim.x));
        const int begin = int(blockIdx.x) * share, end = begin + share < net.size ? begin + share : net.size;
        T* sums = a.numbers + a.layout.partial;  // those of the first block become the gradient
        const double squares = add_blocks(sums, begin, end);
        T scale = T(1);
        if (a.adam.clip > 0) {
            const double mine = block_sum(squares, block.doubles());
            if (threadIdx.x == 0) a.norms[blockIdx.x] = mine;
            if (!block.meet()) return false;
            double total = 0;
            for (int b = 0; b < int(gridDim.x); b++) total += __ldcg(a.norms + b);
            scale = T(clip_factor(a.adam.clip, sqrt(total)));
        }
        const AdamStep<T> adam(a.adam, rate, power1, power2);
        T *values = a.numbers + net.values, *first = a.numbers + net.first, *second = a.numbers + net.second;
        for (int i = begin + int(threadIdx.x); i < end; i += int(blockDim.x)) {
            T m = first[i], v = second[i], p = values[i];
            adam.update(T(sums[i] * scale), m, v, p);
            first[i] = m;
            second[i] = v;
            values[i] = p;
            if (averages) {
                T& average = a.numbers[net.average + i];
                average += T(1 - a.adam.average) * (p - average);
            }
        }
        if (!block.meet()) return false;
        refresh();
        return true;
    }

  private:
    __device__ T* cotangent(int l) const { return l + 1 < net.depth ? activations + net.layer[l].d : last_product(); }

    // What becomes of the cotangent of layer l's input: that of the product below, or itself at the first.
    __device__ StoreBackward<T> through(int l, int rows, T* to) const {
        const LoopLayer& layer = net.layer[l];
        if (l == 0)
            return {to, nullptr, layer.in_stride, rows, layer.in, Store::product, Function::identity, T(0), T(0)};
        return {to,       product(l - 1),    layer.in_stride,           rows,
                layer.in, Store::derivative, net.layer[l - 1].function, constants[l - 1],
                T(0)};
    }

    __device__ void add_slope(int l, T part) const {
        const T sum = warp_sum(part);
        if (threadIdx.x % 32 == 0) slots[l * (int(blockDim.x) / 32) + threadIdx.x / 32] += sum;
    }

    __device__ void gather_slopes() const {
        const int warps = int(blockDim.x) / 32;
        if (const int i = net.used + int(threadIdx.x); i < net.size) partial()[i] = T(0);  // another network's sums
        if (int(threadIdx.x) >= net.depth || net.layer[threadIdx.x].slope < 0) return;
        T sum = 0;
        for (int w = 0; w < warps; w++) {
            sum += slots[threadIdx.x * warps + w];
            slots[threadIdx.x * warps + w] = T(0);
        }
        partial()[net.layer[threadIdx.x].slope] = sum;
    }

    // The gradient in begin ... end - 1, in the place of the first block's sums; the sum of this thread's squares. Each
    // number's terms are shared by as many threads as there are, and added in the order of blocks.
    __device__ double add_blocks(T* sums, int begin, int end) const {
        const std::int64_t size = block.a.layout.partial_size;
        const int count = end - begin, threads = int(blockDim.x), blocks = int(gridDim.x);
        if (count <= 0) return 0;
        double squares = 0;
        int lines = count < threads ? threads / count : 1;
        lines = lines < blocks ? lines : blocks;
        T* parts = block.memory + block.a.layout.folding;
        const int each = (blocks + lines - 1) / lines;
        for (int start = 0; start < count; start += threads) {  // more than once with one line only
            const int i = lines > 1 ? int(threadIdx.x) % count : start + int(threadIdx.x);
            const int line = lines > 1 ? int(threadIdx.x) / count : 0;
            T sum = 0;
            if (i < count && line < lines) {
                const int last = (line + 1) * each < blocks ? (line + 1) * each : blocks;
                const T* from = sums + begin + i;
                GWF_UNROLL(8)
                for (int b = line * each; b < last; b++) sum += __ldcg(from + b * size);
            }
            if (lines > 1) {
                parts[threadIdx.x] = sum;
                __syncthreads();
                if (int(threadIdx.x) < count) {
                    sum = T(0);
                    for (int k = 0; k < lines; k++) sum += parts[k * count + int(threadIdx.x)];
                }
            }
            if (i < count && line == 0) {
                sums[begin + i] = sum;
                squares += double(sum) * double(sum);
            }
        }
        return squares;
    }
};

}  // namespace gwf::gpu
