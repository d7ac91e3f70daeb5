// The inner loop of a JKO step in one persistent kernel (primal_dual.h): launches.
#define GWF_ISA gpu
#include "gpu/device_math.h"
#include "gpu/launch.h"
// after the functions that it uses
#include "gpu/primal_dual_loop.h"

namespace gwf::gpu {
namespace {

template <class T, class P>
__global__ void __launch_bounds__(loop_threads, 1) primal_dual_kernel(const __grid_constant__ LoopArguments<T> a) {
    BlockLoop<T, P>(a).run();
}

template <class T> int run(const LoopArguments<T>& a, int shared_bytes, Stream stream) {
    const auto& sharing = a.layout.sharing;
    auto* kernel = sharing.per_lane == 0   ? primal_dual_kernel<T, Tiles>
                   : sharing.per_lane == 1 ? primal_dual_kernel<T, Lanes<1>>
                                           : primal_dual_kernel<T, Lanes<2>>;
    return launch_together(kernel, a.layout.blocks, sharing.threads, shared_bytes, a.layout.cluster, stream, a);
}

}  // namespace

#if !defined(GWF_ONLY_DOUBLE)
int run_loop_float(const LoopArguments<float>& a, int shared_bytes, void* stream) {
    return run(a, shared_bytes, static_cast<Stream>(stream));
}
int loop_device(LoopDevice& device) {
    return device_limits(device.multiprocessors, device.shared_bytes, device.clusters);
}
#endif
#if !defined(GWF_ONLY_FLOAT)
int run_loop_double(const LoopArguments<double>& a, int shared_bytes, void* stream) {
    return run(a, shared_bytes, static_cast<Stream>(stream));
}
#endif

}  // namespace gwf::gpu
