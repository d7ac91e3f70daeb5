#define GWF_ISA avx2
#include "sliced/sum_entry.h"

namespace gwf {
extern const SlicedSumBackend sliced_sum_avx2 = {"avx2", avx2::run_sliced_sum<float>, avx2::run_sliced_sum<double>};
}
