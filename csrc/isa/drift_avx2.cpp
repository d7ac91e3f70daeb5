#define GWF_ISA avx2
#include "drift/entry.h"

namespace gwf {
void drift_avx2(const DriftCall<float>& call) { avx2::drift(call); }
void drift_avx2(const DriftCall<double>& call) { avx2::drift(call); }
}  // namespace gwf
