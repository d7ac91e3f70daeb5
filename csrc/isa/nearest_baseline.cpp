#define GWF_ISA baseline
#include "nearest/entry.h"

namespace gwf {
void nearest_baseline(const NearestCall<float>& call) { baseline::nearest::run(call); }
void nearest_baseline(const NearestCall<double>& call) { baseline::nearest::run(call); }
}  // namespace gwf
