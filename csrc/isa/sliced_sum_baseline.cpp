#define GWF_ISA baseline
#include "sliced/sum_entry.h"

namespace gwf {
extern const SlicedSumBackend sliced_sum_baseline = {"baseline", baseline::run_sliced_sum<float>,
                                                     baseline::run_sliced_sum<double>};
}
