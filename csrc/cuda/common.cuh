// Errors of the CUDA runtime as exceptions, and the device every launcher must be on.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../ops.h"

namespace pruneengine::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

// The statically linked runtime keeps its own current device: the caller's must be named. The launch that follows is
// checked too, since a bad configuration is only reported by cudaGetLastError.
template <class Launch>
void launch_on(int device, const char* what, Launch launch) {
  check(cudaSetDevice(device), what);
  launch();
  check(cudaGetLastError(), what);
}

inline cudaStream_t to_stream(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace pruneengine::cuda
