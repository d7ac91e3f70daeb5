// Teams: everything is done once, whatever is thrown arrives, and nobody waits for ever. Prints what failed.
#include "team.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using gwf::Team;

namespace {

constexpr int members = 3;
int failures = 0;

void expect(bool right, const char* what) {
    if (!right) std::printf("failed: %s\n", what), failures++;
}

void everything_is_done_once() {
    for (int threads : {1, members})
        for (int64_t count : {0, 1, 2, 97}) {
            std::vector<int> first(size_t(count), 0), second(size_t(count), 0);
            int between = 0;
            Team::form(threads, [&](Team& team, int) {
                team.loop(count, 1, [&](int64_t i) { first[size_t(i)]++; });
                team.once([&] {
                    for (int times : first) between += times;
                });
                team.loop(count, 5, [&](int64_t begin) {
                    for (int64_t i = begin; i < std::min(count, begin + 5); i++) second[size_t(i)] += between;
                });
            });
            expect(between == count, "what was done before is seen by one, and by all after it");
            bool all = true;
            for (int value : second) all &= value == count;
            expect(all, "each index once");
        }
}

// A team in which one of the threads throws, in each of the places where it can.
void an_exception_arrives() {
    const char* places[] = {"before", "in a loop", "between", "in the middle", "after"};
    for (int threads : {1, members})
        for (const char* place : places)
            for (int repeat = 0; repeat < 50; repeat++) {
                std::atomic<int> thrown{0};
                auto fail_at = [&](const char* here, int number) {
                    if (std::string(here) == place && number == repeat % threads && thrown++ == 0)
                        throw std::bad_alloc();
                };
                bool arrived = false;
                try {
                    Team::form(threads, [&](Team& team, int number) {
                        fail_at("before", number);
                        team.loop(20, 1, [&](int64_t i) { fail_at("in a loop", int(i)); });
                        fail_at("between", number);
                        team.once([&] { fail_at("in the middle", repeat % threads); });
                        team.loop(20, 1, [](int64_t) {});
                        fail_at("after", number);
                    });
                } catch (const std::bad_alloc&) {
                    arrived = true;
                }
                expect(arrived, place);
            }
}

struct Interrupted {};
std::atomic<bool> interrupt{false};

// Work without an end stops, be it the caller's own or that which the caller waits for.
void an_interruption_is_heard() {
    gwf::check_interruption = [] {
        if (interrupt) throw Interrupted{};
    };
    for (int threads : {1, members})
        for (bool caller_works : {true, false}) {
            if (threads == 1 && !caller_works) continue;
            interrupt = false;
            std::thread user([] {
                std::this_thread::sleep_for(std::chrono::milliseconds(100));
                interrupt = true;
            });
            bool arrived = false;
            try {
                Team::form(threads, [&](Team& team, int number) {
                    if (caller_works == (number == 0))
                        for (;;) gwf::breathe(1e6);
                    team.loop(1, 1, [](int64_t) {});
                });
            } catch (const Interrupted&) {
                arrived = true;
            }
            user.join();
            expect(arrived, caller_works ? "an interruption of work" : "an interruption of waiting");
        }
    gwf::check_interruption = nullptr;
}

// A team inside a team is its caller alone, and ends with it.
void a_team_inside_a_team() {
    std::atomic<int> calls{0};
    bool arrived = false;
    try {
        Team::form(members, [&](Team& team, int) {
            team.loop(6, 1, [&](int64_t i) {
                Team::form(gwf::available_threads(),
                           [&](Team& inner, int number) { inner.loop(10, 1, [&](int64_t) { calls += number == 0; }); });
                if (i == 5) throw std::runtime_error("the last");
            });
            for (;;) gwf::breathe(1e9);
        });
    } catch (const std::runtime_error&) {
        arrived = true;
    }
    expect(calls == 60 && arrived, "a team inside a team");
}

void many_meetings() {
    std::vector<int64_t> own(members, 0);
    Team::form(members, [&](Team& team, int number) {
        for (int round = 0; round < 2000; round++) {
            own[size_t(number)]++;
            team.once([&] {
                for (int64_t value : own)
                    if (value != round + 1 && value != 0) expect(false, "a meeting is of all");
            });
        }
    });
}

}  // namespace

int main() {
    everything_is_done_once();
    an_exception_arrives();
    an_interruption_is_heard();
    a_team_inside_a_team();
    many_meetings();
    std::printf("%d failures\n", failures);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
