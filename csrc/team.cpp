#include "team.h"

#include <omp.h>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <utility>

namespace gwf {
namespace {

using Clock = std::chrono::steady_clock;
constexpr double between_looks = 2e7;  // operations: some ten milliseconds
constexpr std::chrono::milliseconds between_questions{50};
constexpr int spins = 2000;  // before a thread sleeps: about what waking it takes

std::atomic<bool> is_forked{false}, has_pool{false};

// Of a pool that was used the child has no threads: torch, whose pool it is, is kept from waiting for them as well.
[[maybe_unused]] const bool watches_forks = [] {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] {
        is_forked = true;
        if (has_pool) omp_set_num_threads(1);
    });
#endif
    return true;
}();

struct Stopped {};  // what ends the other threads of a team

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

}  // namespace

void (*check_interruption)() = nullptr;

int available_threads() { return omp_in_parallel() || is_forked ? 1 : omp_get_max_threads(); }

struct Team::Shared {
    const void* caller;  // its ThreadState
    std::atomic<int> size{0}, arrived{0};
    std::atomic<int64_t> next{0};    // index of the loop
    std::atomic<uint32_t> round{0};  // of meetings; also moved by what stops the team
    std::atomic<bool> stopped{false};
    std::mutex mutex;  // of those who sleep until the next round, and of the error
    std::condition_variable moved;
    std::exception_ptr error;

    void move() {
        {
            const std::lock_guard lock(mutex);
            round.fetch_add(1, std::memory_order_release);
        }
        moved.notify_all();
    }
    void stop(std::exception_ptr thrown) {
        {
            const std::lock_guard lock(mutex);
            if (!error) error = std::move(thrown);
        }
        stopped.store(true, std::memory_order_release);
        move();
    }
};

namespace {

struct ThreadState {
    double left = between_looks;
    void* team = nullptr;  // Team::Shared
    Clock::time_point asked{};

    void ask() {
        const auto now = Clock::now();
        if (now - asked < between_questions || !check_interruption) return;
        asked = now;
        check_interruption();
    }
};

ThreadState& here() {
    thread_local ThreadState state;
    return state;
}

}  // namespace

void breathe(double operations) {
    ThreadState& state = here();
    if ((state.left -= operations) > 0) return;
    state.left = between_looks;
    if (const auto* team = static_cast<const Team::Shared*>(state.team)) {
        if (team->stopped.load(std::memory_order_relaxed)) throw Stopped{};
        if (team->caller != &state) return;
    }
    state.ask();
}

void Team::run(int threads, Call call, void* body) {
    if (omp_in_parallel()) {
        Team alone(nullptr);
        return call(body, alone, 0);
    }
    has_pool.store(true, std::memory_order_relaxed);
    Shared shared;
    shared.caller = &here();
#pragma omp parallel num_threads(threads)
    {
        shared.size.store(omp_get_num_threads(), std::memory_order_relaxed);  // the pool may give fewer
        void* const outer = std::exchange(here().team, &shared);
        try {
            Team team(&shared);
            call(body, team, omp_get_thread_num());
            if (team.arrive()) team.release();  // the caller hears an interruption until all are done
        } catch (const Stopped&) {
        } catch (...) {
            shared.stop(std::current_exception());
        }
        here().team = outer;
    }
    if (shared.error) std::rethrow_exception(shared.error);
}

int64_t Team::take(int64_t step) {
    if (shared_->stopped.load(std::memory_order_relaxed)) throw Stopped{};
    return shared_->next.fetch_add(step, std::memory_order_relaxed);
}

bool Team::arrive() {
    Shared& s = *shared_;
    const uint32_t round = s.round.load(std::memory_order_acquire);
    if (s.stopped.load(std::memory_order_acquire)) throw Stopped{};  // after the round: stopping moves it
    if (s.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == s.size.load(std::memory_order_relaxed)) return true;
    auto waits = [&] { return s.round.load(std::memory_order_acquire) == round; };
    for (int i = 0; i < spins && waits(); i++) pause();
    ThreadState& state = here();
    for (std::unique_lock lock(s.mutex, std::defer_lock); waits();) {
        lock.lock();
        if (s.caller != &state)
            s.moved.wait(lock, [&] { return !waits(); });
        else
            s.moved.wait_for(lock, between_questions, [&] { return !waits(); });
        lock.unlock();
        if (s.caller == &state) state.ask();
    }
    if (s.stopped.load(std::memory_order_acquire)) throw Stopped{};
    return false;
}

void Team::release() {
    shared_->next.store(0, std::memory_order_relaxed);
    shared_->arrived.store(0, std::memory_order_relaxed);
    shared_->move();
}

}  // namespace gwf
