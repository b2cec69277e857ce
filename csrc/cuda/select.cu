// The k-th smallest value of each row and the mask of exactly k smallest, by radix select: one block a row.
//
// Sign-magnitude bits read as two's complement order like the floats they stand for, and -0.0 meets 0.0. Eight bits a
// pass, from the top: count the digits of the keys that match so far, keep the digit that holds the k-th.
#include "common.cuh"

namespace pruneengine::cuda {
namespace {

constexpr int kThreads = 256;  // also the number of digits: one thread scans one bin
constexpr int kWarps = kThreads / 32;

// A key is left-aligned in 32 bits, so that the passes over 16-bit scores are the first two of four.
template <class Bits>
__device__ __forceinline__ uint32_t key_of(Bits score) {
  constexpr int kShift = 32 - 8 * sizeof(Bits);
  const int32_t bits = static_cast<int32_t>(static_cast<uint32_t>(score) << kShift);
  const int32_t sign = bits >> 31;
  return static_cast<uint32_t>(((bits & 0x7fffffff) ^ sign) - sign) ^ 0x80000000u;  // unsigned order
}

__device__ __forceinline__ uint32_t bits_of(uint32_t key) {
  const int32_t value = static_cast<int32_t>(key ^ 0x80000000u);
  return value < 0 ? 0x80000000u | static_cast<uint32_t>(-value) : static_cast<uint32_t>(value);
}

// Exclusive prefix sum over the block; `total` is the sum over all threads.
__device__ __forceinline__ int block_prefix(int value, int* warp_sums, int& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();  // warp_sums may still be read from the call before
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    before += i < warp ? warp_sums[i] : 0;
    total += warp_sums[i];
  }
  return before + sum - value;
}

struct Found {
  uint32_t key;
  int ties_wanted;  // how many keys equal to it are among the k smallest
};

template <class Bits>
__device__ Found radix_select(const Bits* __restrict__ scores, int columns, int k, int* bins, int* warp_sums) {
  __shared__ uint32_t chosen;
  __shared__ int chosen_before;
  uint32_t prefix = 0, prefix_mask = 0;
  for (int shift = 24; shift >= 32 - 8 * static_cast<int>(sizeof(Bits)); shift -= 8) {
    bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < columns; i += kThreads) {
      const uint32_t key = key_of(scores[i]);
      if ((key & prefix_mask) == prefix) atomicAdd(&bins[key >> shift & 0xffu], 1);
    }
    __syncthreads();
    const int here = bins[threadIdx.x];
    int total;
    const int before = block_prefix(here, warp_sums, total);
    if (before < k && k <= before + here) {
      chosen = threadIdx.x;
      chosen_before = before;
    }
    __syncthreads();
    prefix |= chosen << shift;
    prefix_mask |= 0xffu << shift;
    k -= chosen_before;
    __syncthreads();
  }
  return {prefix, k};
}

__device__ __forceinline__ float score_of(uint32_t key, Dtype dtype) {
  const uint32_t bits = bits_of(key);
  if (dtype != Dtype::float16) return __uint_as_float(bits);
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(bits >> 16)));
  return value;
}

template <class Bits>
__global__ void __launch_bounds__(kThreads) kth_value_kernel(const Bits* __restrict__ scores, int64_t stride,
                                                             int columns, int k, Dtype dtype,
                                                             float* __restrict__ values) {
  __shared__ int bins[kThreads], warp_sums[kWarps];
  const int64_t row = blockIdx.x;
  const Found found = radix_select(scores + row * stride, columns, k, bins, warp_sums);
  if (threadIdx.x == 0) values[row] = score_of(found.key, dtype);
}

template <class Bits>
__global__ void __launch_bounds__(kThreads) select_mask_kernel(const Bits* __restrict__ scores, int64_t stride,
                                                               int columns, int k, bool* __restrict__ mask) {
  __shared__ int bins[kThreads], warp_sums[kWarps];
  const int64_t row = blockIdx.x;
  scores += row * stride;
  mask += row * columns;
  if (k == 0) {
    for (int i = threadIdx.x; i < columns; i += kThreads) mask[i] = false;
    return;
  }
  const Found found = radix_select(scores, columns, k, bins, warp_sums);
  int ties_before = 0;  // ties at lower columns, which go first
  for (int begin = 0; begin < columns; begin += kThreads) {
    const int i = begin + threadIdx.x;
    const uint32_t key = i < columns ? key_of(scores[i]) : 0xffffffffu;
    const bool tied = i < columns && key == found.key;
    int ties;
    const int rank = ties_before + block_prefix(tied, warp_sums, ties);
    ties_before += ties;
    if (i < columns) mask[i] = key < found.key || (tied && rank < found.ties_wanted);
  }
}

}  // namespace

void kth_value(Matrix scores, Dtype dtype, int64_t rows, int64_t columns, int64_t k, float* values, int device,
               uintptr_t stream) {
  if (rows == 0) return;
  launch_on(device, "kth_value", [&] {
    if (dtype == Dtype::float32) {
      kth_value_kernel<<<rows, kThreads, 0, to_stream(stream)>>>(static_cast<const uint32_t*>(scores.data),
                                                                 scores.stride, columns, k, dtype, values);
    } else {
      kth_value_kernel<<<rows, kThreads, 0, to_stream(stream)>>>(static_cast<const uint16_t*>(scores.data),
                                                                 scores.stride, columns, k, dtype, values);
    }
  });
}

void select_mask(Matrix scores, Dtype dtype, int64_t rows, int64_t columns, int64_t k, bool* mask, int device,
                 uintptr_t stream) {
  if (rows == 0 || columns == 0) return;
  launch_on(device, "select_mask", [&] {
    if (dtype == Dtype::float32) {
      select_mask_kernel<<<rows, kThreads, 0, to_stream(stream)>>>(static_cast<const uint32_t*>(scores.data),
                                                                   scores.stride, columns, k, mask);
    } else {
      select_mask_kernel<<<rows, kThreads, 0, to_stream(stream)>>>(static_cast<const uint16_t*>(scores.data),
                                                                   scores.stride, columns, k, mask);
    }
  });
}

}  // namespace pruneengine::cuda
