// What is true of every parallel loop and of every long one: how many threads it may have, that an exception leaves it
// as itself instead of ending the process, and that it hears an interruption. The only parallel region of the library
// is in team.cpp.
#pragma once
#include <cstdint>
#include <type_traits>

namespace gwf {

// Threads that a call may use: those of the OpenMP pool, which is torch's; one inside somebody else's team, and one in
// a forked child, where the pool's threads do not exist and waiting for them would never end.
int available_threads();

// Asked now and then by the thread that made a call; throws where the call is to end. The module sets it to look for
// signals.
extern void (*check_interruption)();

// To be called between pieces of work that take less than a tenth of a second, with about as many elementary operations
// as a piece has. Throws what check_interruption throws or, on a thread of a team that is to end, what ends the thread.
void breathe(double operations);

// The threads that work on one call, or the caller alone. Where one of them throws, the others end at their next
// breath, loop or meeting, and the exception goes on from `form`.
class Team {
  public:
    // body(team, number) on each of at most `threads` threads. Alone, it is called as any function is: forming a team
    // takes longer than a small call.
    template <class Body> static void form(int threads, Body&& body) {
        if (threads <= 1) {
            Team alone(nullptr);
            body(alone, 0);
            return;
        }
        using Plain = std::remove_reference_t<Body>;
        run(
            threads, [](void* plain, Team& team, int number) { (*static_cast<Plain*>(plain))(team, number); },
            const_cast<void*>(static_cast<const void*>(&body)));
    }

    // f(i) for i = 0, step, 2 step, ... < count, each on the next free thread; all meet at the end.
    template <class F> void loop(int64_t count, int64_t step, F&& f) {
        if (!shared_) {
            for (int64_t i = 0; i < count; i += step) f(i);
            return;
        }
        for (int64_t i = take(step); i < count; i = take(step)) f(i);
        if (arrive()) release();
    }

    // f() on one thread, when all have come here and before any goes on.
    template <class F> void once(F&& f) {
        if (!shared_) return f();
        if (!arrive()) return;
        f();
        release();
    }

  private:
    struct Shared;
    using Call = void (*)(void* body, Team& team, int number);

    explicit Team(Shared* shared) : shared_(shared) {}
    static void run(int threads, Call call, void* body);
    int64_t take(int64_t step);
    bool arrive();   // false once the others' last has released this thread, true for that last one
    void release();  // by which the next loop begins

    friend void breathe(double operations);
    Shared* shared_;  // null: alone
};

}  // namespace gwf
