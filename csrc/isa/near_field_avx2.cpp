#define GWF_ISA avx2
#include "near/entry.h"

namespace gwf {
void near_field_avx2(const NearFieldCall& call) { avx2::near_field(call); }
}  // namespace gwf
