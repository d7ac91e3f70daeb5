#define GWF_ISA baseline
#include "primal_dual/entry.h"

namespace gwf {
extern const PrimalDualBackend primal_dual_baseline = {"baseline",
                                                       baseline::make_primal_dual<float>,
                                                       baseline::make_primal_dual<double>,
                                                       baseline::philox_indices,
                                                       baseline::philox_uniforms<double>,
                                                       baseline::philox_normals<float>,
                                                       baseline::philox_normals<double>};
}
