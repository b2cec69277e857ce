// Columns named by an index. A warp owns a stretch of outputs and several rows, which share one reading of the
// index: neighbouring threads read neighbouring columns, or copy a word each where the columns of every one of them
// are an aligned run (kept attention heads).
#pragma once

#include <type_traits>

#include "gather.cuh"

namespace pruneengine::cuda {

constexpr int kGatherWarps = kGatherThreads / kWarp;
constexpr int kBandRows = 8;

// 16 bytes of outputs, but not more than 8: more would not leave the registers for enough loads at once.
__host__ __device__ constexpr uint32_t per_thread(int element_bytes) {
  return element_bytes == 1 ? 8 : kWordBytes / element_bytes;
}

inline int64_t blocks_for_columns(int64_t kept, int64_t rows, int element_bytes) {
  const int64_t stretches = divide_up(kept, kWarp * per_thread(element_bytes));
  return divide_up(stretches * divide_up(rows, kBandRows), kGatherWarps);
}

// Whether the outputs that this thread owns are an aligned run of columns, and the first of them.
template <class T>
__device__ __forceinline__ bool is_run(const Part& part, uint32_t begin, uint64_t& first) {
  constexpr uint32_t kPerThread = per_thread(sizeof(T));
  first = 0;
  if (begin >= part.kept) return true;  // nothing to copy
  if (part.kept - begin < kPerThread) return false;
  first = part.index[begin];
  bool run = first % kPerThread == 0;
#pragma unroll
  for (uint32_t i = 1; i < kPerThread; ++i) run = run && part.index[begin + i] == first + i;
  if (run && (first >= part.bound || part.bound - first < kPerThread)) __trap();
  return run;
}

template <class Word>
__device__ __forceinline__ void copy_runs(const Part& part, uint32_t row, uint32_t end, uint64_t from, uint64_t to) {
  constexpr uint32_t kTogether = 4;  // rows in flight at once
  for (; row < end; row += kTogether) {
    Word words[kTogether];
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i) {
      if (row + i < end) words[i] = *reinterpret_cast<const Word*>(part.data + (row + i) * part.stride + from);
    }
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i) {
      if (row + i < end) *reinterpret_cast<Word*>(part.out + (row + i) * part.out_stride + to) = words[i];
    }
  }
}

template <class T>
__device__ __forceinline__ void copy_scattered(const Part& part, uint32_t row, uint32_t end, uint32_t begin) {
  constexpr uint32_t kPerThread = per_thread(sizeof(T));
  constexpr uint32_t kTogether = sizeof(T) < 4 ? sizeof(T) : 4;  // rows in flight at once: 8 or 16 loads a thread
  uint32_t columns[kPerThread];  // of output begin + i * kWarp: consecutive threads, consecutive outputs
  bool bad = false;
#pragma unroll
  for (uint32_t i = 0; i < kPerThread; ++i) {
    const uint32_t output = begin + i * kWarp;
    const uint64_t column = output < part.kept ? part.index[output] : 0;
    bad = bad || column >= part.bound;
    columns[i] = static_cast<uint32_t>(column);
  }
  if (bad) __trap();
  for (; row < end; row += kTogether) {
    T elements[kTogether][kPerThread];
#pragma unroll
    for (uint32_t r = 0; r < kTogether; ++r) {
      const T* source = reinterpret_cast<const T*>(part.data + (row + r) * part.stride);
#pragma unroll
      for (uint32_t i = 0; i < kPerThread; ++i) {
        if (row + r < end && begin + i * kWarp < part.kept) elements[r][i] = source[columns[i]];
      }
    }
#pragma unroll
    for (uint32_t r = 0; r < kTogether; ++r) {
      T* target = reinterpret_cast<T*>(part.out + (row + r) * part.out_stride) + begin;
#pragma unroll
      for (uint32_t i = 0; i < kPerThread; ++i) {
        if (row + r < end && begin + i * kWarp < part.kept) target[i * kWarp] = elements[r][i];
      }
    }
  }
}

template <class T>
__device__ void gather_columns_block(const Part& part, uint32_t block, bool aligned) {
  constexpr uint32_t kPerThread = per_thread(sizeof(T)), kStretch = kWarp * kPerThread;
  const uint32_t stretches = (part.kept + static_cast<uint64_t>(kStretch) - 1) / kStretch;
  const uint64_t warp = static_cast<uint64_t>(block) * kGatherWarps + threadIdx.x / kWarp;
  const uint64_t first_row = warp / stretches * kBandRows;
  if (first_row >= part.whole) return;
  const uint32_t lane = threadIdx.x % kWarp, begin = warp % stretches * kStretch;
  const uint32_t row = first_row, end = min(first_row + kBandRows, static_cast<uint64_t>(part.whole));

  const uint32_t own = begin + lane * kPerThread;
  uint64_t first = 0;
  const bool run = aligned && is_run<T>(part, own, first);
  if (!__all_sync(kAllLanes, run)) {
    copy_scattered<T>(part, row, end, begin + lane);
  } else if (own < part.kept) {
    using Word = std::conditional_t<sizeof(T) == 1, uint2, uint4>;
    copy_runs<Word>(part, row, end, first * sizeof(T), static_cast<uint64_t>(own) * sizeof(T));
  }
}

}  // namespace pruneengine::cuda
