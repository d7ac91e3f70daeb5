#define GWF_ISA avx512
#include "mlp/entry.h"

namespace gwf {
extern const MlpBackend mlp_avx512 = {"avx512", avx512::run_mlp<float>, avx512::run_mlp<double>};
}
