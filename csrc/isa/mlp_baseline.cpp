#define GWF_ISA baseline
#include "mlp/entry.h"

namespace gwf {
extern const MlpBackend mlp_baseline = {"baseline", baseline::run_mlp<float>, baseline::run_mlp<double>};
}
