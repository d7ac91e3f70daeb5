#define GWF_ISA avx2
#include "transport/entry.h"

namespace gwf {
TransportOutcome transport_avx2(const TransportCall<float>& call) { return avx2::entropic::solve(call); }
TransportOutcome transport_avx2(const TransportCall<double>& call) { return avx2::entropic::solve(call); }
}  // namespace gwf
