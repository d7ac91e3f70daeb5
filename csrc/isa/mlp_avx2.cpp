#define GWF_ISA avx2
#include "mlp/entry.h"

namespace gwf {
extern const MlpBackend mlp_avx2 = {"avx2", avx2::run_mlp<float>, avx2::run_mlp<double>};
}
