#define GWF_ISA baseline
#include "stein/entry.h"

namespace gwf {
extern const PairwiseBackend pairwise_baseline = {"baseline",
                                                  baseline::run<float>,
                                                  baseline::run<double>,
                                                  baseline::run_stein<float>,
                                                  baseline::run_stein<double>,
                                                  baseline::fma_peak};
}
