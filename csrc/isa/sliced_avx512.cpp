#define GWF_ISA avx512
#include "sliced/entry.h"

namespace gwf {
extern const SlicedBackend sliced_avx512 = {"avx512", avx512::run_sliced<float>, avx512::run_sliced<double>};
}
