// The one header that knows a GPU runtime. Only what CUDA and HIP share: kernels, shared memory, launches, errors.
#pragma once
#include <cstdint>
#include <utility>

#if defined(__HIP_PLATFORM_AMD__)
#include <hip/hip_runtime.h>
namespace gwf::gpu {
using Stream = hipStream_t;
inline int last_error() { return int(hipGetLastError()); }
inline const char* error_string(int code) { return hipGetErrorString(hipError_t(code)); }
}  // namespace gwf::gpu
#else
#include <cuda_runtime.h>
namespace gwf::gpu {
using Stream = cudaStream_t;
inline int last_error() { return int(cudaGetLastError()); }
inline const char* error_string(int code) { return cudaGetErrorString(cudaError_t(code)); }
}  // namespace gwf::gpu
#endif

namespace gwf::gpu {

// Starts a kernel and says whether it could be started; errors while it runs show up at the next synchronisation.
template <class Kernel, class Argument>
int launch(Kernel kernel, std::int64_t blocks, int threads, Stream stream, const Argument& argument) {
    kernel<<<dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), 0, stream>>>(argument);
    return last_error();
}

#if !defined(__HIP_PLATFORM_AMD__)  // clusters are CUDA's

// What one block of the current device may have.
inline int device_limits(int& multiprocessors, int& shared_bytes, bool& clusters) {
    int device = 0, major = 0;
    int code = int(cudaGetDevice(&device));
    for (const auto& [attribute, to] : {std::pair{cudaDevAttrMultiProcessorCount, &multiprocessors},
                                        {cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared_bytes},
                                        {cudaDevAttrComputeCapabilityMajor, &major}})
        if (code == 0) code = int(cudaDeviceGetAttribute(to, attribute, device));
    clusters = major >= 9;
    return code;
}

// Starts blocks that wait for each other: a launch that the device can't hold all at once is refused.
template <class Kernel, class Argument>
int launch_together(Kernel kernel, int blocks, int threads, int shared_bytes, bool cluster, Stream stream,
                    const Argument& argument) {
    int code = int(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    if (code != 0) return code;
    cudaLaunchAttribute attribute{};
    if (cluster) {
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    } else {
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    if (cluster) {  // of a cooperative launch the runtime asks itself
        int clusters = 0;
        code = int(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
        if (code != 0) return code;
        if (clusters < 1) return int(cudaErrorCooperativeLaunchTooLarge);
    }
    code = int(cudaLaunchKernelEx(&config, kernel, argument));
    return code != 0 ? code : last_error();
}

#endif

}  // namespace gwf::gpu
