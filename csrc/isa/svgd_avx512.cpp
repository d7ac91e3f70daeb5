#define GWF_ISA avx512
#include "svgd/entry.h"

namespace gwf {
bool svgd_avx512(const SvgdCall<float>& call) { return avx512::svgd::run(call); }
bool svgd_avx512(const SvgdCall<double>& call) { return avx512::svgd::run(call); }
}  // namespace gwf
