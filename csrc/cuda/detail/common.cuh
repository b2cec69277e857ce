// Errors of the CUDA runtime as exceptions, the device every launcher must be on, and the one way to launch.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../../ops.h"

namespace pruneengine::cuda {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

// The statically linked runtime keeps its own current device: the caller's must be named. The launches that follow are
// checked too, since a bad configuration is only reported by cudaGetLastError.
template <class Launches>
void launch_on(int device, const char* what, Launches launches) {
  check(cudaSetDevice(device), what);
  launches();
  check(cudaGetLastError(), what);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream,
            const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(arguments...);
}

inline cudaStream_t to_stream(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

inline int64_t divide_up(int64_t count, int64_t by) { return (count + by - 1) / by; }

}  // namespace pruneengine::cuda
