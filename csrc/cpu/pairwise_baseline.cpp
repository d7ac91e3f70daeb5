#define GWF_ISA baseline
#include "../pairwise_entry.h"

namespace gwf {
extern const PairwiseBackend pairwise_baseline = {"baseline", baseline::run<float>, baseline::run<double>,
                                                  baseline::fma_peak};
}
