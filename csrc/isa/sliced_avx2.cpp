#define GWF_ISA avx2
#include "sliced/entry.h"

namespace gwf {
extern const SlicedBackend sliced_avx2 = {"avx2", avx2::run_sliced<float>, avx2::run_sliced<double>};
}
