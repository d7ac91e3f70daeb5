// The one header that knows a GPU runtime. Only what CUDA and HIP share: kernels, shared memory, launches, errors.
#pragma once
#include <cstdint>

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

}  // namespace gwf::gpu
