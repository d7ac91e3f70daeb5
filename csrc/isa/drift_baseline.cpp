#define GWF_ISA baseline
#include "drift/entry.h"

namespace gwf {
void drift_baseline(const DriftCall<float>& call) { baseline::drift(call); }
void drift_baseline(const DriftCall<double>& call) { baseline::drift(call); }
}  // namespace gwf
