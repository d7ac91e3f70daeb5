#define GWF_ISA avx2
#include "svgd/entry.h"

namespace gwf {
bool svgd_avx2(const SvgdCall<float>& call) { return avx2::svgd::run(call); }
bool svgd_avx2(const SvgdCall<double>& call) { return avx2::svgd::run(call); }
}  // namespace gwf
