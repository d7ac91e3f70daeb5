// OpenMP's run time on std::thread, for ThreadSanitizer: it cannot see how libgomp starts and joins threads, and would
// take every parallel region for a race. What csrc/team.cpp uses is here, and nothing else.
#include <thread>
#include <vector>

namespace {

constexpr int pool = 3;

thread_local int size = 1, self = 0;

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("hidden")))

EXPORTED int omp_get_max_threads() { return size > 1 ? 1 : pool; }
EXPORTED int omp_get_num_threads() { return size; }
EXPORTED int omp_get_thread_num() { return self; }
EXPORTED void omp_set_num_threads(int) {}
EXPORTED int omp_in_parallel() { return size > 1; }

EXPORTED void GOMP_parallel(void (*body)(void*), void* data, unsigned wanted, unsigned) {
    const int outer_size = size, outer_self = self;
    const int members = size > 1 ? 1 : wanted ? int(wanted) : pool;  // no teams within teams, as in the library
    auto run = [&](int id) {
        size = members, self = id;
        body(data);
    };
    std::vector<std::thread> threads;
    for (int id = 1; id < members; id++) threads.emplace_back(run, id);
    run(0);
    for (auto& thread : threads) thread.join();
    size = outer_size, self = outer_self;
}
