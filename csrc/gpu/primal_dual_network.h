// A network in training inside a block: its tile of rows forward and back.
#pragma once
#include "gpu/barrier.h"
#include "gpu/block.h"
#include "gpu/lanes.h"

namespace gwf::gpu {

// What a block knows: where it works, and with whom.
template <class T> struct Block {
    const LoopArguments<T>& a;
    RowGroup rows;

    __device__ explicit Block(const LoopArguments<T>& a) : a(a), rows(a.layout.sharing) {}

    __device__ T* memory() const { return shared_memory<T>(); }
    __device__ LoopState& state() const {
        return *reinterpret_cast<LoopState*>(shared_memory<char>() + a.layout.state);
    }
    __device__ bool meet() const {
        return GridBarrier{a.arrivals, a.failure, a.layout.cluster}.wait(&state().expected, &state().flag);
    }
};

// As other blocks left it, which the first cache may not know. Many copies are on their way at a time, until
// finish_copies().
template <class T> __device__ __forceinline__ void copy_four(const T* from, T* to) {
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
__device__ __forceinline__ void finish_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    __syncthreads();
}

// Weights as the products read them. Those that don't stay in shared memory are brought there, by all threads.
template <class P, class T>
__device__ __forceinline__ const T* weights_of(int resident, const T* from, int staging, int count) {
    if (!P::shares_rows || resident >= 0) return shared_memory<T>() + resident;
    T* to = shared_memory<T>() + staging;
    for (int i = 4 * int(threadIdx.x); i < count; i += 4 * int(blockDim.x)) copy_four(from + i, to + i);
    finish_copies();
    return to;
}

// ---- the products with what becomes of them ------------------------------------------------------------------------

// to = f(a w' + bias) + added; z the product itself.
template <class T> struct StoreForward {
    T *z, *to;
    const T* added;
    bool keeps, adds;           // whether the product is kept, whether something is added
    int stride, rows, columns;  // of all three
    Function function;
    T constant;

    __device__ void operator()(int r, int c, T value) const {
        if (r >= rows || c >= columns) return;
        const int at = r * stride + c;
        const T result = hidden_jet(function, value, constant).value;
        if (keeps) z[at] = value;
        to[at] = adds ? added[at] + result : result;
    }
};

// The rows of w end in a bias, which is among the terms where padding leaves room.
template <class P, class T>
__device__ __forceinline__ void multiply_forward(const RowGroup& group, const T* a, int stride, const T* w, int in,
                                                 StoreForward<T>& finish) {
    P::template multiply<true>(group, a, stride, w, stride, in_fours(in), finish.rows, finish.columns, in % 4 ? -1 : in,
                               finish);
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

// d w
template <class P, class T>
__device__ __forceinline__ void multiply_backward(const RowGroup& group, const T* d, int stride, const T* w, int width,
                                                  int out, StoreBackward<T>& finish) {
    P::template multiply<false>(group, d, stride, w, width, in_fours(out), finish.rows, finish.columns, -1, finish);
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

// ---- the network ---------------------------------------------------------------------------------------------------

// By value: what the compiler keeps in registers across the calls of its functions, each of which is there once.
template <class T, class P> struct BlockNetwork {
    const T* values;
    RowGroup group;
    int described, first, slot, staging;  // in shared memory: the network, in bytes; its activations; sums of slopes

    __device__ BlockNetwork(const Block<T>& block, int number)
        : values(block.a.numbers + (number ? block.a.layout.critic : block.a.layout.map).values),
          group(block.rows),
          described(block.a.layout.state + number * int(sizeof(LoopNetwork))),
          first((number ? block.a.layout.critic : block.a.layout.map).shared),
          slot(block.a.layout.slots),
          staging(block.a.layout.staging) {}

    __device__ const LoopNetwork& net() const {
        return *reinterpret_cast<const LoopNetwork*>(shared_memory<char>() + described);
    }
    __device__ T* activations() const { return shared_memory<T>() + first; }
    __device__ T* input() const { return activations() + net().layer[0].a; }
    __device__ T* output() const { return activations() + net().output; }
    __device__ T* last_product() const { return activations() + net().layer[net().depth - 1].z; }
    __device__ int input_place() const { return first + net().layer[0].a; }
    __device__ int output_place() const { return first + net().output; }
    __device__ int output_stride() const { return net().layer[net().depth - 1].out_stride; }

    // Zeros, and the ones that stand before a bias: nothing else is written there.
    __device__ void clear() const {
        for (int l = 0; l < net().depth; l++) {
            const LoopLayer& layer = net().layer[l];
            fill_rows(activations() + layer.a, layer.in, layer.in_stride);
            fill_rows(activations() + layer.z, -1, layer.out_stride);
            if (!layer.d) continue;
            fill_rows(activations() + layer.d, -1, layer.out_stride);
            fill_rows(activations() + layer.tangent, -1, layer.out_stride);
        }
        fill_rows(output(), net().layer[net().depth - 1].out, output_stride());
        for (int i = int(threadIdx.x); i < net().depth * slot_count(); i += int(blockDim.x)) slots()[i] = T(0);
    }

    // The rows of the input through all layers.
    __device__ void forward(int rows) const { through_layers(*this, rows); }

    // From the cotangent of the last product, which stands in its place, down to the first layer; those of the others
    // take their places. The input's goes to `of_input`, of the input's stride, where that isn't -1.
    __device__ void backward(int rows, bool slopes, int of_input) const {
        back_through_layers(*this, rows, slopes, false, of_input);
    }

    // The gradient of the parameters that the rows' cotangents and inputs make, after backward(), is stored in `sums`,
    // or added; with `along`, that which cotangents and tangents make, after tangents(along). Begins with a barrier of
    // the block; the next tile has to begin with one too.
    __device__ void gradients(int rows, T* sums, bool add, int along = -1) const {
        products_of_rows(*this, rows, sums, add, along);
    }

    // grad h of a network of leaky units with one output, after forward(rows); the cotangents of the products stay.
    __device__ void gradient(int rows, int to) const {
        group.each_row(rows, [&](int r) { last_product()[r * output_stride()] = T(1); });
        P::sync();
        back_through_layers(*this, rows, false, true, to);
    }

    // After gradient(): the tangents of the products along t. With cotangents fixed, they make the gradient of <t, grad
    // h> in the parameters: the second derivatives of leaky units are 0 (csrc/primal_dual/penalty.h).
    __device__ void tangents(int t, int rows) const { along_layers(*this, t, rows); }

    // The block's sum of the slopes' gradients to `sums`, after gradients().
    __device__ void gather_slopes(T* sums) const {
        if (const int i = net().used + int(threadIdx.x); i < net().size) sums[i] = T(0);  // another network's sums
        const int lane = int(threadIdx.x) % 32, count = slot_count(), warps = int(blockDim.x) / 32;
        // the last warps, which may have had no part in gradients()
        for (int l = warps - 1 - int(threadIdx.x) / 32; l < net().depth; l += warps) {
            const int slope = net().layer[l].slope;
            if (slope < 0) continue;
            T* of_layer = slots() + l * count;
            T sum = 0;
            GWF_UNROLL(4)
            for (int i = lane; i < count; i += 32) sum += of_layer[i];
            for (int i = lane; i < count; i += 32) of_layer[i] = T(0);
            sum = warp_sum(sum);
            if (lane == 0) sums[slope] = sum;
        }
    }

  private:
    __device__ T* slots() const { return shared_memory<T>() + slot; }
    __device__ T* product(int l) const { return activations() + net().layer[l].z; }
    __device__ T* next_input(int l) const {
        return l + 1 < net().depth ? activations() + net().layer[l + 1].a : output();
    }
    __device__ T* cotangent(int l, bool apart) const {
        return apart && l + 1 < net().depth ? activations() + net().layer[l].d : product(l);
    }
    __device__ const T* weights(const LoopLayer& layer) const {
        return weights_of<P>(net().resident < 0 ? -1 : net().resident + layer.weight, values + layer.weight, staging,
                             layer.weights());
    }
    __device__ void fill_rows(T* to, int one, int stride) const {
        for (int i = int(threadIdx.x); i < net().rows * stride; i += int(blockDim.x)) to[i] = T(i % stride == one);
    }
    __device__ static int slot_count() { return P::shares_rows ? int(blockDim.x) / 32 : int(blockDim.x); }
    __device__ void add_slope(int l, T part) const {
        if constexpr (P::shares_rows) {
            const T sum = warp_sum(part);
            if (threadIdx.x % 32 == 0) slots()[l * slot_count() + threadIdx.x / 32] += sum;
        } else {
            slots()[l * slot_count() + threadIdx.x] += part;
        }
    }

    __device__ static __noinline__ void through_layers(BlockNetwork n, int rows) {
        const int depth = n.net().depth;
        for (int l = 0; l < depth; l++) {
            const LoopLayer& layer = n.net().layer[l];
            const bool adds = n.net().residual && l + 1 == depth;
            StoreForward<T> finish{n.product(l), n.next_input(l), n.input(),        true, adds, layer.out_stride, rows,
                                   layer.out,    layer.function,  T(layer.constant)};
            multiply_forward<P>(n.group, n.activations() + layer.a, layer.in_stride, n.weights(layer), layer.in,
                                finish);
            P::sync();
        }
    }

    // `apart`: the cotangents of products have places of their own.
    __device__ static __noinline__ void back_through_layers(BlockNetwork n, int rows, bool slopes, bool apart,
                                                            int of_input) {
        for (int l = n.net().depth - 1; l >= (of_input < 0 ? 1 : 0); l--) {
            const LoopLayer &layer = n.net().layer[l], &below = n.net().layer[l > 0 ? l - 1 : 0];
            const bool first = l == 0;
            StoreBackward<T> finish{first ? shared_memory<T>() + of_input : n.cotangent(l - 1, apart),
                                    n.product(l > 0 ? l - 1 : 0),
                                    layer.in_stride,
                                    rows,
                                    layer.in,
                                    first ? Store::product : Store::derivative,
                                    below.function,
                                    T(below.constant),
                                    T(0)};
            multiply_backward<P>(n.group, n.cotangent(l, apart), layer.out_stride, n.weights(layer), layer.in_stride,
                                 layer.out, finish);
            if (slopes && !first && below.slope >= 0) n.add_slope(l - 1, finish.slope_sum);
            P::sync();
        }
    }

    __device__ static __noinline__ void along_layers(BlockNetwork n, int from, int rows) {
        const T* t = shared_memory<T>() + from;
        for (int l = 0; l + 1 < n.net().depth; l++) {
            const LoopLayer& layer = n.net().layer[l];
            const T *d = n.cotangent(l, true), slope = T(layer.constant);
            T* tangent = n.activations() + layer.tangent;
            // a slope's derivative takes u in d = slope u
            const bool divides = slope != T(0);
            if (!divides && layer.slope >= 0) {
                const LoopLayer& above = n.net().layer[l + 1];
                StoreBackward<T> finish{
                    tangent, tangent, above.in_stride, rows, above.in, Store::product, Function::identity, T(0), T(0)};
                multiply_backward<P>(n.group, n.cotangent(l + 1, true), above.out_stride, n.weights(above),
                                     above.in_stride, above.out, finish);
                P::sync();
            }
            StoreTangent<T> finish{tangent, n.product(l), divides ? d : tangent, layer.out_stride, rows, layer.out,
                                   slope,   T(0)};
            P::template multiply<true>(n.group, t, layer.in_stride, n.weights(layer), layer.in_stride,
                                       in_fours(layer.in), rows, layer.out, -1, finish);
            if (layer.slope >= 0) n.add_slope(l, divides ? finish.slope_sum / slope : finish.slope_sum);
            P::sync();
            t = tangent;
        }
    }

    __device__ static __noinline__ void products_of_rows(BlockNetwork n, int rows, T* sums, bool add, int along) {
        __syncthreads();
        auto cotangents = [&](int l) { return n.cotangent(l, along >= 0); };
        auto inputs = [&](int l) -> const T* {
            if (along < 0) return n.activations() + n.net().layer[l].a;
            return l ? n.activations() + n.net().layer[l - 1].tangent : shared_memory<T>() + along;
        };
        if constexpr (P::shares_rows) {
            for (int l = 0; l < n.net().depth; l++) {
                const LoopLayer& layer = n.net().layer[l];
                multiply_rows(cotangents(l), layer.out_stride, inputs(l), layer.in_stride, rows, in_fours(layer.out),
                              sums + layer.weight, add);
            }
        } else if (n.net().weights / 16 >= int(blockDim.x) / 2) {
            multiply_all_rows<4>(n.net(), cotangents, inputs, rows, sums, add);
        } else {
            multiply_all_rows<1>(n.net(), cotangents, inputs, rows, sums, add);
        }
    }
};

}  // namespace gwf::gpu
