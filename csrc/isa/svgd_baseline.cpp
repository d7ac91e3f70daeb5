#define GWF_ISA baseline
#include "svgd/entry.h"

namespace gwf {
bool svgd_baseline(const SvgdCall<float>& call) { return baseline::svgd::run(call); }
bool svgd_baseline(const SvgdCall<double>& call) { return baseline::svgd::run(call); }
}  // namespace gwf
