#define GWF_ISA avx512
#include "stein/entry.h"

namespace gwf {
extern const PairwiseBackend pairwise_avx512 = {
    "avx512",        avx512::run<float>, avx512::run<double>, avx512::run_stein<float>, avx512::run_stein<double>,
    avx512::fma_peak};
}
