#define GWF_ISA avx2
#include "nearest/entry.h"

namespace gwf {
void nearest_avx2(const NearestCall<float>& call) { avx2::nearest::run(call); }
void nearest_avx2(const NearestCall<double>& call) { avx2::nearest::run(call); }
}  // namespace gwf
