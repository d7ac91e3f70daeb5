// A barrier of all blocks of a launch that are known to be on the device together: a cooperative launch, or a cluster.
// Who waits in vain gives up, and says so to the others: a bug must not hold a device.
#pragma once
#include <cstdint>

#include "gpu/rows.h"

namespace gwf::gpu {

#if !defined(GWF_PATIENCE)
#define GWF_PATIENCE 1u << 23
#endif
constexpr std::uint32_t patience = GWF_PATIENCE;  // looks at the counter, each of a third of a microsecond at least
constexpr std::uint32_t eager = 32;               // of them without a pause

// Writes before it are seen before those after it. Weaker than __threadfence(), which orders all fences of a device.
__device__ inline void fence_of_device() {
#if defined(__CUDA_ARCH__)
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
#else
    __threadfence();
#endif
}

struct GridBarrier {
    unsigned long long* arrivals;
    int* failure;
    bool cluster;

    // What any thread of any block wrote before is seen by all after it. False: given up; the same for a whole block.
    // `expected`, 0 at the start, and `flag` are in shared memory.
    __device__ bool wait(unsigned long long* expected, int* flag) const {
        if (gridDim.x == 1) {
            __syncthreads();
            return true;
        }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
        if (cluster) {  // in hardware; whole warps arrive
            __syncthreads();
            asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                             : "memory");
            return true;
        }
#endif
        __syncthreads();
        if (threadIdx.x == 0) {
            *expected += gridDim.x;
            fence_of_device();
            atomicAdd(arrivals, 1ull);
            bool open = false;
            GWF_UNROLL(1)
            for (std::uint32_t look = 0; look < patience; look++) {
                open = *(volatile unsigned long long*)arrivals >= *expected;
                if (open || *(volatile int*)failure != 0) break;
                if (look >= eager) __nanosleep(32);
            }
            fence_of_device();
            if (!open) *(volatile int*)failure = 1;
            *flag = open;
        }
        __syncthreads();
        return *flag != 0;
    }
};

}  // namespace gwf::gpu
