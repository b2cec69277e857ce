// What the threads of a block find out together: prefix sums, and the digit that holds the k-th key.
#pragma once

#include "common.cuh"

namespace pruneengine::cuda {

// Exclusive prefix sum over the block; `total` is the sum over all threads.
template <int kThreads, class Count>
__device__ __forceinline__ Count block_prefix(Count value, Count (&warp_sums)[kThreads / kWarp], Count& total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Count sum = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const Count other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();  // warp_sums may still be read from the call before
  if (lane == kWarp - 1) warp_sums[warp] = sum;
  __syncthreads();
  Count before = 0;
  total = 0;
#pragma unroll
  for (int i = 0; i < kThreads / kWarp; ++i) {
    before += i < warp ? warp_sums[i] : Count{0};
    total += warp_sums[i];
  }
  return before + sum - value;
}

template <class Count>
struct Digit {
  uint32_t value;
  Count before;  // keys with a smaller digit
  Count here;    // keys with this one
};

// The digit of the k-th key, 1 <= k, from the counts of all digits; `bins` is synchronised by the caller.
template <int kThreads, int kBins, class Count>
__device__ __forceinline__ Digit<Count> find_digit(const Count* bins, Count k, Count (&warp_sums)[kThreads / kWarp],
                                                   Digit<Count>& found) {
  constexpr int kEach = kBins / kThreads;
  static_assert(kEach * kThreads == kBins, "every thread has the same number of bins");
  Count mine[kEach], sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    mine[i] = bins[threadIdx.x * kEach + i];
    sum += mine[i];
  }
  Count total;
  Count before = block_prefix<kThreads>(sum, warp_sums, total);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (before < k && k <= before + mine[i]) found = {threadIdx.x * kEach + i, before, mine[i]};
    before += mine[i];
  }
  __syncthreads();
  return found;
}

}  // namespace pruneengine::cuda
