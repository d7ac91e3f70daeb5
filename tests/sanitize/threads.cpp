// OpenMP's run time on std::thread, for ThreadSanitizer: it cannot see how libgomp synchronises, and would take every
// parallel region for a race. What csrc/ uses is here, and nothing else; a region starts its threads and joins them.
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace {

constexpr int pool = 3;

struct Share {  // of the iterations of a loop, or of a single block
    long next, end, step, chunk;
    bool taken = false;
};

struct Team {
    explicit Team(int size) : size(size) {}
    const int size;
    std::mutex mutex;
    std::condition_variable gathered;
    int waiting = 0;
    long generation = 0;
    std::deque<Share> shares;  // in the order of the program, the same for all threads

    void barrier() {
        std::unique_lock lock(mutex);
        const long before = generation;
        if (++waiting == size) {
            waiting = 0;
            generation++;
            gathered.notify_all();
        } else {
            gathered.wait(lock, [&] { return generation != before; });
        }
    }
};

thread_local Team* team = nullptr;
thread_local int self = 0;
thread_local size_t shares_met = 0;

Team& current() {
    thread_local Team alone(1);
    return team ? *team : alone;
}

template <class Make> Share& share(Make make, bool fresh) {  // with the team's mutex held
    Team& t = current();
    if (fresh) shares_met++;
    if (t.size == 1 && fresh) {
        t.shares.clear();
        shares_met = 1;
    }
    if (t.shares.size() < shares_met) t.shares.push_back(make());
    return t.shares[shares_met - 1];
}

bool take(Share& s, long* first, long* last) {
    if (s.step > 0 ? s.next >= s.end : s.next <= s.end) return false;
    *first = s.next;
    const long stop = s.next + s.chunk * s.step;
    *last = s.step > 0 ? std::min(stop, s.end) : std::max(stop, s.end);
    s.next = *last;
    return true;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("hidden")))

EXPORTED int omp_get_max_threads() { return team ? 1 : pool; }
EXPORTED int omp_get_num_threads() { return current().size; }
EXPORTED int omp_get_thread_num() { return self; }
EXPORTED int omp_in_parallel() { return team && team->size > 1; }

EXPORTED void GOMP_parallel(void (*body)(void*), void* data, unsigned wanted, unsigned) {
    const int size = team ? 1 : wanted ? int(wanted) : pool;  // no nested teams, as in the library
    Team own(size);
    auto run = [&](int id) {
        Team* outer = team;
        const int outer_self = self;
        const size_t outer_shares = shares_met;
        team = &own, self = id, shares_met = 0;
        body(data);
        team = outer, self = outer_self, shares_met = outer_shares;
    };
    std::vector<std::thread> threads;
    for (int id = 1; id < size; id++) threads.emplace_back(run, id);
    run(0);
    for (auto& thread : threads) thread.join();
}

EXPORTED bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long* first,
                                                   long* last) {
    std::lock_guard lock(current().mutex);
    return take(share([&] { return Share{start, end, step, chunk}; }, true), first, last);
}
EXPORTED bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) {
    std::lock_guard lock(current().mutex);
    return take(share([] { return Share{}; }, false), first, last);
}
EXPORTED void GOMP_loop_end() { current().barrier(); }
EXPORTED void GOMP_loop_end_nowait() {}
EXPORTED void GOMP_barrier() { current().barrier(); }
EXPORTED bool GOMP_single_start() {
    std::lock_guard lock(current().mutex);
    Share& s = share([] { return Share{}; }, true);
    const bool first = !s.taken;
    s.taken = true;
    return first;
}
EXPORTED void GOMP_critical_name_start(void** name) {
    static std::mutex mutex;
    static std::map<void**, std::unique_ptr<std::mutex>> known;
    std::mutex* own;
    {
        std::lock_guard lock(mutex);
        auto& entry = known[name];
        if (!entry) entry = std::make_unique<std::mutex>();
        own = entry.get();
    }
    own->lock();
    *name = own;
}
EXPORTED void GOMP_critical_name_end(void** name) { static_cast<std::mutex*>(*name)->unlock(); }
