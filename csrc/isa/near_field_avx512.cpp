#define GWF_ISA avx512
#include "near/entry.h"

namespace gwf {
void near_field_avx512(const NearFieldCall& call) { avx512::near_field(call); }
}  // namespace gwf
