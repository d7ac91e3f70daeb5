#define GWF_ISA baseline
#include "transport/entry.h"

namespace gwf {
TransportOutcome transport_baseline(const TransportCall<float>& call) { return baseline::entropic::solve(call); }
TransportOutcome transport_baseline(const TransportCall<double>& call) { return baseline::entropic::solve(call); }
}  // namespace gwf
