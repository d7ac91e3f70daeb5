#define GWF_ISA avx512
#include "sliced/sum_entry.h"

namespace gwf {
extern const SlicedSumBackend sliced_sum_avx512 = {"avx512", avx512::run_sliced_sum<float>,
                                                   avx512::run_sliced_sum<double>};
}
