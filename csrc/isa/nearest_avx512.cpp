#define GWF_ISA avx512
#include "nearest/entry.h"

namespace gwf {
void nearest_avx512(const NearestCall<float>& call) { avx512::nearest::run(call); }
void nearest_avx512(const NearestCall<double>& call) { avx512::nearest::run(call); }
}  // namespace gwf
