// How compiled code that holds no lock asks Python something.
#pragma once
#include <pybind11/pybind11.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gwf {

// While it lives, results too small for a normal number are what IEEE 754 says, as the caller's code expects.
class GradualUnderflow {
  public:
#if defined(__x86_64__)
    GradualUnderflow() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~0x8040u); }
    ~GradualUnderflow() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#else
    GradualUnderflow() {}
#endif
  public:
    GradualUnderflow(const GradualUnderflow&) = delete;
    GradualUnderflow& operator=(const GradualUnderflow&) = delete;
};

// Runs what signals have asked for, and throws where that raised, as Ctrl-C does; for check_interruption of team.h.
inline void check_signals() {
    const pybind11::gil_scoped_acquire lock;
    const GradualUnderflow python;
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
}

}  // namespace gwf
