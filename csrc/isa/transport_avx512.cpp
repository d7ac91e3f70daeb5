#define GWF_ISA avx512
#include "transport/entry.h"

namespace gwf {
TransportOutcome transport_avx512(const TransportCall<float>& call) { return avx512::entropic::solve(call); }
TransportOutcome transport_avx512(const TransportCall<double>& call) { return avx512::entropic::solve(call); }
}  // namespace gwf
