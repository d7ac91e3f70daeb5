#define GWF_ISA avx512
#include "drift/entry.h"

namespace gwf {
void drift_avx512(const DriftCall<float>& call) { avx512::drift(call); }
void drift_avx512(const DriftCall<double>& call) { avx512::drift(call); }
}  // namespace gwf
