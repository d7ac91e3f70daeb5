#define GWF_ISA avx512
#include "primal_dual/entry.h"

namespace gwf {
extern const PrimalDualBackend primal_dual_avx512 = {"avx512",
                                                     avx512::make_primal_dual<float>,
                                                     avx512::make_primal_dual<double>,
                                                     avx512::philox_indices,
                                                     avx512::philox_uniforms<double>,
                                                     avx512::philox_normals<float>,
                                                     avx512::philox_normals<double>};
}
