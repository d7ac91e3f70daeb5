// The inner loop of a JKO step in one persistent kernel, as the rest of the library sees it: sizes, where everything
// lies, pointers. Plain C++, tested on the CPU.
//
// The loop is that of csrc/primal_dual/primal_dual.h with a critic and without callbacks. Blocks share the batch: block
// b has rows b chunk, ..., (b + 1) chunk - 1 of particles and of samples of Gamma, through tiles that stay in shared
// memory. Networks up to 64 wide: a group of lanes takes its rows through all layers, so that threads of a warp alone
// wait for each other; wider ones: all threads of a block share a layer's product.
//
// An update of few parameters is: gradient sums of each block; barrier; their sums over the blocks and Adam, in each
// block, on parameters and moments in its shared memory. Of many: gradient sums; barrier; sums of a slice over the
// blocks, in their order; barrier (for the norm, where it is clipped); Adam on the slice; barrier; weights to shared
// memory. With one block a barrier is __syncthreads().
//
// A layer's parameters are rows [w_o0, ..., w_o(in-1), b_o, 0 ...] of padded(in) numbers, one an output and padded to
// fours with zeros; activations are rows [a_0, ..., a_(in-1), 1, 0 ...] of as many. So a bias is a weight, and its
// gradient comes with theirs. The slopes of a network's layers follow after all weights.
#pragma once
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "primal_dual/primal_dual.h"

namespace gwf::gpu {

constexpr int loop_threads = 512;  // the most of a block
constexpr int most_layers = 12;
constexpr int widest = 128;
constexpr int largest_cluster = 8;        // that every card with clusters has
constexpr int data_block = 64;            // data of a logistic density at a time
constexpr int widest_lanes = 64;          // of networks whose rows a few lanes take through all layers
constexpr int most_everywhere = 1 << 15;  // blocks times parameters that each block sums

constexpr int in_fours(int n) { return (n + 3) / 4 * 4; }
constexpr int padded(int n) { return in_fours(n + 1); }

struct LoopLayer {
    int in, out, in_stride, out_stride;
    int weight, slope;  // in a flat array; slope -1: not learned
    int a, z;           // in the network's part of shared memory: inputs [rows][in_stride], products [rows][out_stride]
    int d, tangent;     // of the product and of its function, likewise; only where there is a penalty
    Function function;
    double constant;
    constexpr int weights() const { return in_fours(out) * in_stride; }
};

struct LoopNetwork {
    LoopLayer layer[most_layers];
    int depth, output;  // output [rows][stride of the last layer]: f of the last product
    bool residual;
    int used, size;                               // of a flat array; in fours
    int weights;                                  // numbers that aren't slopes
    int rows;                                     // of a tile
    int shared, resident;                         // numbers in shared memory: activations; weights, -1 = not there
    std::int64_t values, first, second, average;  // flat arrays in the workspace
};

// What a block keeps in shared memory beside its numbers.
struct LoopState {
    LoopNetwork nets[2];          // where all threads read them at once: map and critic, slopes in `constant`
    double powers[2][2];          // beta^t of the updates done
    double places[32];            // a sum of each warp
    double adam[8];               // an AdamStep
    unsigned long long expected;  // arrivals until the next barrier of the grid opens
    int flag;
};
constexpr int loop_state_bytes = (int(sizeof(LoopState)) + 31) / 32 * 32;

// x to matrix x + shift, as a layer's weights [in_fours(D)][padded(D)].
struct LoopAffine {
    std::int64_t at;  // in the workspace; -1: none
    int resident;     // in shared memory; -1: not there
};

enum class DensityKind { none, gaussian, mixture, logistic };

// Of csrc/primal_dual/density.h, those that the kernel knows. Pointers on the device.
template <class T> struct LoopDensity {
    DensityKind kind;
    std::int64_t count;                         // components, or data
    const T *points, *precision, *log_weights;  // means; data of a logistic density
    double number;
};

inline DensityKind density_kind(const std::string& name) {
    if (name == "none") return DensityKind::none;
    if (name == "gaussian") return DensityKind::gaussian;
    if (name == "mixture") return DensityKind::mixture;
    if (name == "logistic") return DensityKind::logistic;
    throw std::invalid_argument("density: the kernel of CUDA devices has no " + name);
}

template <class T> LoopDensity<T> loop_density(const Density<T>& from, std::int64_t dim) {
    LoopDensity<T> made{density_kind(from.kind), 0, nullptr, nullptr, nullptr, 0};
    if (made.kind == DensityKind::gaussian) {  // its mean and matrix lie in the workspace
        from.array(0, 1, dim), from.array(1, dim, dim);
        made.number = from.number(0);
    } else if (made.kind == DensityKind::mixture) {
        made.count = from.array(0, -1, dim).rows;
        made.points = from.arrays[0].data;
        made.precision = from.array(1, 1, made.count).data;
        made.log_weights = from.array(2, 1, made.count).data;
    } else if (made.kind == DensityKind::logistic) {
        made.count = from.array(0, -1, dim - 1).rows;
        made.points = from.arrays[0].data;
        made.number = from.number(0);
    }
    return made;
}

struct LoopSizes {
    int input_dim, dim;
    std::int64_t batch, target_batch;
    bool penalty, whitening, log_mean, normal_targets, averages;
    DensityKind density;
    std::vector<MlpLayer> map, critic;
    std::vector<bool> map_learned, critic_learned;
    bool map_residual;
};

struct LoopDevice {
    int multiprocessors, shared_bytes;  // that a block may have
    bool clusters;
    int blocks = 0, threads = 0;  // 0: choose
};

// How the threads of a block share the rows of a tile: row r belongs to the group of lanes r % groups.
struct LoopSharing {
    int threads;
    int per_lane;  // results of a layer that a lane has at a time; 0: a block has them together (products.h)
    int lane_bits, groups;
};

// Where everything lies; offsets are in numbers of the loop's precision. -1: not there.
struct LoopLayout {
    int blocks, chunk;
    bool cluster;  // the blocks are a cluster
    LoopSharing sharing;
    LoopNetwork map, critic;
    LoopAffine whitening, density;
    int data, margins;  // in shared memory: data_block rows of a logistic density's data, and of the tile with each
    int cotangents, spare, staging, slots, folding;                // in shared memory
    int moments;                                                   // in shared memory: where each block updates all
    int state;                                                     // in shared memory, in bytes
    std::int64_t partial, partial_size, points, targets, outputs;  // in the workspace
};

struct LoopPlan {
    LoopLayout layout;
    int shared_bytes;
    std::int64_t numbers;  // of the workspace
    std::string refusal;   // why there is no plan; else empty
};

namespace planning {

inline LoopNetwork network(const std::vector<MlpLayer>& layers, const std::vector<bool>& learned, bool residual) {
    LoopNetwork net{};
    net.depth = int(layers.size());
    net.residual = residual;
    for (int l = 0; l < net.depth; l++) {
        const auto& from = layers[size_t(l)];
        const int in = int(from.in), out = int(from.out);
        net.layer[l] = {in, out, padded(in), padded(out), net.size, -1, 0, 0, 0, 0, from.function, from.constant};
        net.size += net.layer[l].weights();
    }
    net.weights = net.size;
    for (int l = 0; l < net.depth; l++)
        if (learned[size_t(l)]) net.layer[l].slope = net.size++;
    net.used = net.size;
    net.size = in_fours(net.size);
    return net;
}

// Lays out the activations of a tile; returns their count.
inline int place_rows(LoopNetwork& net, int rows, bool penalty) {
    net.rows = rows;
    int next = 0;
    for (int l = 0; l < net.depth; l++) {
        auto& layer = net.layer[l];
        layer.a = next;
        layer.z = next + rows * layer.in_stride;
        next = layer.z + rows * layer.out_stride;
        if (!penalty) continue;
        layer.d = next;
        layer.tangent = next + rows * layer.out_stride;
        next += 2 * rows * layer.out_stride;
    }
    net.output = next;
    return next + rows * net.layer[net.depth - 1].out_stride;
}

inline int largest_layer(const LoopNetwork& net) {
    int most = 0;
    for (int l = 0; l < net.depth; l++) most = std::max(most, net.layer[l].weights());
    return most;
}

inline int widest_layer(const LoopNetwork& net) {
    int most = 0;
    for (int l = 0; l < net.depth; l++) most = std::max({most, net.layer[l].in, net.layer[l].out});
    return most;
}

}  // namespace planning

// How many blocks pay. Where an update is a few microseconds a barrier of many blocks costs as much: one block then, or
// a cluster, whose barrier is in hardware. Beyond, blocks have 4 rows a side: with M's networks 128 blocks took 86 ms a
// step on an H200, 64 took 106 and 32 took 180 (bench/primal_dual_cuda.py).
inline int choose_blocks(const LoopSizes& sizes, std::int64_t parameters, const LoopDevice& device) {
    const std::int64_t rows = std::max(sizes.batch, sizes.target_batch);
    if (device.blocks > 0) return int(std::min<std::int64_t>(device.blocks, rows));
    constexpr std::int64_t small = 1 << 20;  // products of rows and parameters
    constexpr std::int64_t fewest = 8;       // rows of a block in a cluster
    if (rows * parameters <= small)
        return device.clusters ? int(std::clamp<std::int64_t>(rows / fewest, 1, largest_cluster)) : 1;
    return int(std::min<std::int64_t>(device.multiprocessors, (rows + 3) / 4));
}

// How many threads pay, and how they share `rows` rows. Up to 32 wide a lane has one result of a layer, and there are
// lanes for all rows; beyond, two of each of four rows, so that a weight read is used often.
inline LoopSharing choose_sharing(int widest_network, int rows, bool resident, const LoopDevice& device) {
    constexpr int fewest_threads = 128, rows_of_group = 4;
    auto whole_warps = [](int n) { return (n + 31) / 32 * 32; };
    if (!resident || widest_network > widest_lanes) {
        const int threads = device.threads > 0 ? device.threads : loop_threads;
        return {threads, 0, 5, threads / 32};
    }
    const int lane_bits = widest_network <= 16 ? 4 : 5;
    if (widest_network <= 32) {
        const int wanted = std::clamp(whole_warps(rows << lane_bits), fewest_threads, loop_threads);
        const int threads = device.threads > 0 ? device.threads : wanted;
        return {threads, 1, lane_bits, threads >> lane_bits};
    }
    const int threads = device.threads > 0 ? device.threads : loop_threads, warps = threads / 32;
    return {threads, 2, lane_bits, std::clamp((rows + rows_of_group - 1) / rows_of_group, std::min(4, warps), warps)};
}

inline LoopPlan plan_loop(const LoopSizes& sizes, int number_bytes, const LoopDevice& device) {
    LoopPlan plan{};
    LoopLayout& at = plan.layout;
    for (const auto* layers : {&sizes.map, &sizes.critic}) {
        if (layers->empty() || layers->size() > size_t(most_layers)) {
            plan.refusal = "networks have 1 to " + std::to_string(most_layers) + " layers";
            return plan;
        }
        for (const auto& layer : *layers)
            if (layer.in > widest || layer.out > widest) {
                plan.refusal = "networks are at most " + std::to_string(widest) + " wide";
                return plan;
            }
    }
    at.map = planning::network(sizes.map, sizes.map_learned, sizes.map_residual);
    at.critic = planning::network(sizes.critic, sizes.critic_learned, false);
    const std::int64_t most_rows = std::max(sizes.batch, sizes.target_batch);
    const int wanted = choose_blocks(sizes, std::max(at.map.size, at.critic.size), device);
    at.chunk = int((most_rows + wanted - 1) / wanted);
    at.blocks = int((most_rows + at.chunk - 1) / at.chunk);
    at.cluster = device.clusters && at.blocks > 1 && at.blocks <= largest_cluster;

    const int stride = padded(sizes.dim), matrix = in_fours(sizes.dim) * stride;
    const bool has_matrix = sizes.density == DensityKind::gaussian;
    const int limit = device.shared_bytes / number_bytes;
    const int chunk = in_fours(at.chunk), parameters = at.map.size + at.critic.size;
    const int widest_network = std::max(planning::widest_layer(at.map), planning::widest_layer(at.critic));
    // weights stay in shared memory where they fit beside a tile of a useful size, and moments where they are few; else
    // a layer at a time does
    auto fits = [&](int map_rows, int critic_rows, bool resident, bool everywhere) {
        int next = 0;
        auto take = [&](int count) { return std::exchange(next, next + in_fours(count)); };
        at.sharing = choose_sharing(widest_network, 2 * at.chunk, resident, device);
        const int threads = at.sharing.threads;
        at.map.shared = take(planning::place_rows(at.map, map_rows, false));
        at.critic.shared = take(planning::place_rows(at.critic, critic_rows, sizes.penalty));
        const int points = std::max(map_rows, sizes.penalty ? critic_rows : 0);
        at.cotangents = take(points * stride);
        at.spare = take(points * stride);
        const bool logistic = sizes.density == DensityKind::logistic;
        at.data = logistic ? take(data_block * stride) : -1;
        at.margins = logistic ? take(map_rows * data_block) : -1;
        at.slots = take(std::max(at.map.depth, at.critic.depth) * (at.sharing.per_lane ? threads : threads / 32));
        const int folding = std::max(4 * threads, everywhere ? std::max(at.map.size, at.critic.size) : 0);
        at.map.resident = resident ? take(at.map.size) : -1;
        at.critic.resident = resident ? take(at.critic.size) : -1;
        at.moments = everywhere ? take(2 * parameters) : -1;
        at.whitening.resident = resident && sizes.whitening ? take(matrix) : -1;
        at.density.resident = resident && has_matrix ? take(matrix) : -1;
        const int layer = std::max({planning::largest_layer(at.map), planning::largest_layer(at.critic), matrix});
        // sums are folded while no layer is in use, and can lie where layers do
        const int working = take(resident ? folding : std::max(folding, layer));
        at.folding = working;
        at.staging = resident ? -1 : working;
        at.state = next * number_bytes;
        plan.shared_bytes = at.state + loop_state_bytes;
        return next + loop_state_bytes / number_bytes <= limit;
    };
    const bool few = std::int64_t(at.blocks) * std::max(at.map.size, at.critic.size) <= most_everywhere;
    bool found = false;
    for (const auto& [resident, everywhere] : {std::pair{true, true}, {true, false}, {false, false}}) {
        if (everywhere && !few) continue;
        for (int parts = 1; !found; parts++) {
            const int map_rows = in_fours((chunk + parts - 1) / parts);
            const int critic_rows = parts == 1 ? 2 * chunk : map_rows;
            found = fits(map_rows, critic_rows, resident, everywhere);
            if (!found && parts == 1) found = fits(map_rows, map_rows, resident, everywhere);
            if (map_rows <= (resident ? 8 : 4)) break;
        }
        if (found) break;
    }
    if (!found) {
        plan.refusal = "the networks need more shared memory than the " + std::to_string(device.shared_bytes) +
                       " bytes that a block has on this device";
        return plan;
    }
    std::int64_t next = 0;
    auto take = [&](std::int64_t count) { return std::exchange(next, next + (count + 3) / 4 * 4); };
    for (auto* net : {&at.map, &at.critic}) {
        net->values = take(net->size);
        net->first = take(net->size);
        net->second = take(net->size);
        net->average = net == &at.map && sizes.averages ? take(net->size) : -1;
    }
    at.whitening.at = sizes.whitening ? take(matrix) : -1;
    at.density.at = has_matrix ? take(matrix) : -1;
    at.partial_size = std::max(at.map.size, at.critic.size);
    at.partial = take((at.moments < 0 ? 1 : 2) * at.blocks * at.partial_size);
    at.points = take(sizes.batch * sizes.dim);
    at.targets = sizes.normal_targets ? take(sizes.target_batch * sizes.dim) : -1;
    at.outputs = sizes.log_mean ? take(sizes.target_batch) : -1;
    plan.numbers = next;
    return plan;
}

// One launch: iterations first, ..., first + count - 1.
template <class T> struct LoopArguments : LoopNumbers {
    LoopLayout layout;
    int input_dim, dim;
    std::int64_t pool_size, target_size;
    bool whole_pool;
    Elementwise of_model, of_target;
    LoopDensity<T> density;
    const T *inputs, *anchors, *target;
    double map_rate, critic_rate;
    double map_powers[2], critic_powers[2];  // beta^t before the first update
    std::int64_t first, count;

    T* numbers;                    // the workspace
    std::int64_t* rows;            // [batch], then [target_batch]: which rows of the pools
    double* losses;                // [count][blocks][2]: of the map, of the critic
    double* norms;                 // [blocks]
    const double* schedule;        // [first + count]
    unsigned long long* arrivals;  // at barriers; 0 at the start
    int* failure;                  // 0; 1: a barrier was given up
};

// 0, or a code of the runtime.
int loop_device(LoopDevice& device);  // the current one
int run_loop_float(const LoopArguments<float>& arguments, int shared_bytes, void* stream);
int run_loop_double(const LoopArguments<double>& arguments, int shared_bytes, void* stream);

}  // namespace gwf::gpu
