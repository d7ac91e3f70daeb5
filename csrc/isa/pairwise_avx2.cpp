#define GWF_ISA avx2
#include "stein/entry.h"

namespace gwf {
extern const PairwiseBackend pairwise_avx2 = {
    "avx2", avx2::run<float>, avx2::run<double>, avx2::run_stein<float>, avx2::run_stein<double>, avx2::fma_peak};
}
