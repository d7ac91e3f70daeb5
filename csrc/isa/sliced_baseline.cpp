#define GWF_ISA baseline
#include "sliced/entry.h"

namespace gwf {
extern const SlicedBackend sliced_baseline = {"baseline", baseline::run_sliced<float>, baseline::run_sliced<double>};
}
