#define GWF_ISA baseline
#include "near/entry.h"

namespace gwf {
void near_field_baseline(const NearFieldCall& call) { baseline::near_field(call); }
}  // namespace gwf
