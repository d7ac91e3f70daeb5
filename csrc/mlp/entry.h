// The entry point of one instruction set: splits a call into chunks of rows, whose sums are added in a fixed order.
#pragma once
#include <memory>

#include "mlp/tile.h"
#include "team.h"

namespace gwf::GWF_ISA {

inline constexpr double mlp_serial_below = 1e8;  // operations, about a millisecond: waking a thread may cost as much
inline constexpr int64_t chunk_rows_at_least = 256, chunks_at_most = 16;

struct MlpChunk {
    size_t batch;
    int64_t begin, end;
};

// From the sizes alone, so that the sums do not depend on the threads.
template <class T> std::vector<MlpChunk> split_rows(const MlpCall<T>& call) {
    std::vector<MlpChunk> chunks;
    for (size_t b = 0; b < call.batches.size(); b++) {
        const int64_t rows = call.batches[b].rows, granule = TileMemory<T>::granule;
        const int64_t count = std::clamp<int64_t>(rows / chunk_rows_at_least, 1, chunks_at_most);
        const int64_t size = (rows + count * granule - 1) / (count * granule) * granule;
        for (int64_t i = 0; i < rows; i += size) chunks.push_back({b, i, std::min(rows, i + size)});
    }
    return chunks;
}

// Sums in the network's own layout to gradients in PyTorch's.
template <class T> void write_gradients(const MlpCall<T>& call, const Network<T>& network, T* memory) {
    for (size_t l = 0; l < network.layers.size(); l++) {
        const auto& layer = network.layers[l];
        const GradientSums<T> sums = layer.sums(memory);
        const MlpArrays<T>& to = call.gradients[l];
        if (to.weight) {
            for (int64_t o = 0; o < layer.out; o++)
                for (int64_t i = 0; i < layer.in; i++)
                    to.weight[o * layer.in + i] = layer.lanes_are_outputs ? sums.weight[i * layer.out_stride + o]
                                                                          : sums.weight[o * layer.in_stride + i];
        }
        if (to.bias) std::copy_n(sums.bias, layer.out, to.bias);
        if (to.slope) *to.slope = horizontal_sum<T>(load(sums.slope));
    }
}

template <class T> void run_mlp(const MlpCall<T>& call) {
    const Network<T> network(call);
    const std::vector<MlpChunk> chunks = split_rows(call);
    const int64_t tile_rows = TileMemory<T>::rows_of(call), count = int64_t(chunks.size());
    const bool gradients = !call.gradients.empty() && call.pass != MlpPass::forward;
    double rows = 0;
    for (const MlpBatch<T>& batch : call.batches) rows += double(batch.rows);
    const double passes = call.pass == MlpPass::forward ? 1 : call.pass == MlpPass::backward ? 3 : 8;
    const int threads = 2 * rows * double(network.multiplications) * passes < mlp_serial_below
                            ? 1
                            : std::min<int>(available_threads(), int(count));

    const int64_t sums_size = gradients ? network.gradient_size : 0;
    Arena<T> sums_memory(std::max<int64_t>(count, 1) * Arena<T>::rounded(sums_size));
    std::vector<T*> sums;
    for (int64_t i = 0; i < std::max<int64_t>(count, 1); i++)
        sums.push_back(gradients ? sums_memory.take(sums_size) : nullptr);
    if (gradients) std::fill_n(sums[0], sums_size, T(0));  // the answer where there are no rows
    std::vector<double> totals(size_t(count), 0.0);

    const double tile_work = double(tile_rows) * double(network.multiplications) * passes / 8;
    Team::form(threads, [&](Team& team, int) {
        TileMemory<T> memory(call.pass, network.layers, tile_rows);
        team.loop(count, 1, [&](int64_t i) {
            const MlpChunk& chunk = chunks[size_t(i)];
            if (gradients) std::fill_n(sums[size_t(i)], sums_size, T(0));
            Tile<T> tile(call.pass, call.residual, network.layers, memory, call.batches[chunk.batch]);
            double* total = call.batches[chunk.batch].total ? &totals[size_t(i)] : nullptr;
            for (int64_t r = chunk.begin; r < chunk.end; r += tile_rows) {
                breathe(tile_work);
                tile.run(r, std::min(tile_rows, chunk.end - r), sums[size_t(i)], total);
            }
        });
    });

    for (const MlpBatch<T>& batch : call.batches)
        if (batch.total) *batch.total = 0;
    for (int64_t i = 0; i < count; i++) {
        if (double* total = call.batches[chunks[size_t(i)].batch].total) *total += totals[size_t(i)];
        if (!gradients || i == 0) continue;
        for (int64_t k = 0; k < sums_size; k++) sums[0][k] += sums[size_t(i)][k];
    }
    if (gradients) write_gradients(call, network, sums[0]);
}

}  // namespace gwf::GWF_ISA
