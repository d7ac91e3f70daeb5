#define GWF_ISA avx2
#include "primal_dual/entry.h"

namespace gwf {
extern const PrimalDualBackend primal_dual_avx2 = {"avx2",
                                                   avx2::make_primal_dual<float>,
                                                   avx2::make_primal_dual<double>,
                                                   avx2::philox_indices,
                                                   avx2::philox_uniforms<double>,
                                                   avx2::philox_normals<float>,
                                                   avx2::philox_normals<double>};
}
