// The persistent kernel of csrc/gpu/primal_dual_loop.h on fibers: the very code, in the place of gwf_fast._cuda.
#include "fibers.h"
#define GWF_PATIENCE 20000
#define GWF_ISA gpu
#include "gpu/device_math.h"
// after the functions that it uses
#include "gpu/primal_dual_loop.h"
#include "gpu/primal_dual_module.h"

namespace py = pybind11;
using namespace gwf::gpu;

namespace {
int multiprocessors = 4, shared_bytes = 227 * 1024, block_threads = 64;
std::uint64_t order = 0;
int absent = -1;  // a block that doesn't come

template <class T> int run(const LoopArguments<T>& a, int bytes) {
    const auto& sharing = a.layout.sharing;
    auto kernel = [&]<class P>(P) {
        if (int(blockIdx.x) != absent) BlockLoop<T, P>(a).run();
    };
    fibers::launch(unsigned(a.layout.blocks), unsigned(sharing.threads), std::size_t(bytes), order, [&] {
        if (sharing.per_lane == 0) kernel(Tiles{});
        if (sharing.per_lane == 1) kernel(Lanes<1>{});
        if (sharing.per_lane == 2) kernel(Lanes<2>{});
    });
    return 0;
}
}  // namespace

namespace gwf::gpu {
int loop_device(LoopDevice& device) {
    device.multiprocessors = multiprocessors;
    device.shared_bytes = shared_bytes;
    device.clusters = false;
    device.threads = block_threads;
    return 0;
}
int run_loop_float(const LoopArguments<float>& a, int bytes, void*) { return run(a, bytes); }
int run_loop_double(const LoopArguments<double>& a, int bytes, void*) { return run(a, bytes); }
const char* error_text(int) { return "no such error"; }
}  // namespace gwf::gpu

PYBIND11_MODULE(host_primal_dual, module) {
    bind_primal_dual(module);
    module.def("emulate", [](int processors, int bytes, int block, std::uint64_t seed, int missing) {
        multiprocessors = processors, shared_bytes = bytes, block_threads = block, order = seed, absent = missing;
    });
    // number `i` of a stream as a thread draws it
    module.def("draw", [](std::uint64_t seed, std::uint32_t iteration, std::uint32_t stream, std::int64_t i,
                          std::int64_t bound) {
        const Draw draw{seed, iteration, stream};
        return std::make_tuple(draw.index(i, bound), draw.uniform(i), draw.normal<double>(i), draw.normal<float>(i));
    });
}
