// CUDA's threads on a CPU, for tests of kernels that wait for each other: each thread is a fiber, barriers and shuffles
// are where fibers change. Included before the kernel's headers. Which fiber runs next is drawn from a seed, so that a
// missing barrier shows as a result that depends on it; a barrier that not all threads reach ends the run.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__

struct Dim {
    unsigned x;
};
struct uint4 {
    unsigned x, y, z, w;
};

namespace fibers {

struct Meeting {  // of the threads of a block, or of a warp
    int members = 0, arrived = 0;
    std::uint64_t round = 0;
};

struct BlockState {
    Meeting threads;
    std::vector<Meeting> warps;
    std::vector<std::uint64_t> exchanged;  // a number a thread
    std::vector<char> memory;
};

struct Fiber {
    ucontext_t context;  // to begin with; then a jump, which asks the system for nothing
    jmp_buf place;
    bool begun = false;
    std::unique_ptr<char[]> stack;
    Dim block, thread;
    BlockState* state = nullptr;
    const Meeting* waits = nullptr;
    std::uint64_t round = 0;
    bool done = false;
};

inline Fiber* current = nullptr;
inline jmp_buf scheduler;
inline Dim grid_size, block_size;

// Back to the scheduler, until it comes back here.
inline __attribute__((noinline)) void change() {
    if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
}

inline __attribute__((noinline)) void go_on(Fiber& fiber) {
    if (_setjmp(scheduler) != 0) return;
    current = &fiber;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}

inline void meet(Meeting& meeting) {
    if (++meeting.arrived == meeting.members) {
        meeting.arrived = 0;
        meeting.round++;
        return;
    }
    current->waits = &meeting;
    current->round = meeting.round;
    change();
}

template <class T> T shuffle(T value, int with) {
    BlockState& state = *current->state;
    const unsigned me = current->thread.x;
    std::memcpy(&state.exchanged[me], &value, sizeof value);
    meet(state.warps[me / 32]);
    T other;
    std::memcpy(&other, &state.exchanged[me ^ unsigned(with)], sizeof other);
    meet(state.warps[me / 32]);
    return other;
}

// All blocks at once, as a cooperative launch has them.
inline void launch(unsigned blocks, unsigned threads, std::size_t shared_bytes, std::uint64_t seed,
                   const std::function<void()>& kernel) {
    static const std::function<void()>* body;
    body = &kernel;
    grid_size.x = blocks;
    block_size.x = threads;
    std::vector<BlockState> states(blocks);
    std::vector<std::unique_ptr<Fiber>> all;
    for (unsigned b = 0; b < blocks; b++) {
        states[b].threads.members = int(threads);
        states[b].warps.resize(threads / 32);
        for (auto& warp : states[b].warps) warp.members = 32;
        states[b].exchanged.resize(threads);
        states[b].memory.assign(shared_bytes + 64, char(0xff));  // NaN to whoever reads first
        for (unsigned t = 0; t < threads; t++) {
            auto fiber = std::make_unique<Fiber>();
            constexpr std::size_t stack = 128 * 1024;
            fiber->stack.reset(new char[stack]);
            fiber->block.x = b;
            fiber->thread.x = t;
            fiber->state = &states[b];
            getcontext(&fiber->context);
            fiber->context.uc_stack = {fiber->stack.get(), 0, stack};
            fiber->context.uc_link = nullptr;
            auto start = +[] {
                (*body)();
                current->done = true;
                change();
            };
            makecontext(&fiber->context, start, 0);
            all.push_back(std::move(fiber));
        }
    }
    std::mt19937_64 random(seed);
    for (std::size_t left = all.size(); left;) {
        bool moved = false;
        // a random start and an odd step: any order of pairs, at the cost of an addition
        std::size_t at = seed ? random() % all.size() : 0;
        const bool backwards = seed && random() % 2;
        for (std::size_t k = 0; k < all.size(); k++) {
            Fiber& fiber = *all[at];
            at = backwards ? (at ? at - 1 : all.size() - 1) : (at + 1 == all.size() ? 0 : at + 1);
            if (fiber.done || (fiber.waits && fiber.waits->round == fiber.round)) continue;
            fiber.waits = nullptr;
            go_on(fiber);
            moved = true;
            if (fiber.done) left--;
        }
        if (!moved) throw std::runtime_error("a barrier that not all threads reach");
    }
}

inline char* memory() {
    char* start = current->state->memory.data();
    return start + (64 - reinterpret_cast<std::uintptr_t>(start) % 64) % 64;
}

}  // namespace fibers

#define threadIdx (fibers::current->thread)
#define blockIdx (fibers::current->block)
#define blockDim fibers::block_size
#define gridDim fibers::grid_size

inline void __syncwarp() { fibers::meet(fibers::current->state->warps[fibers::current->thread.x / 32]); }
inline void __syncthreads() { fibers::meet(fibers::current->state->threads); }
template <class T> T __shfl_xor_sync(unsigned, T value, int with) { return fibers::shuffle(value, with); }
inline void __threadfence() {}
inline void __nanosleep(unsigned) { fibers::change(); }
template <class T> T atomicAdd(T* to, T value) {
    const T before = *to;
    *to += value;
    return before;
}
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldg(const T* p) { return *p; }
inline std::uint64_t __umul64hi(std::uint64_t a, std::uint64_t b) {
    return std::uint64_t((static_cast<unsigned __int128>(a) * b) >> 64);
}
