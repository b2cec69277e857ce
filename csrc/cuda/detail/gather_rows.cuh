// Rows named by an index, copied in the widest words that alignment allows.
//
// 256 threads are `wide` words of `tall` rows; a block makes kUnits such steps through its part in order, and has all
// its loads under way before the first store.
#pragma once

#include "gather.cuh"

namespace pruneengine::cuda {

constexpr int kUnits = 4;

__host__ __device__ inline uint32_t words_wide(uint32_t words) {
  uint32_t wide = 1;
  while (wide < kGatherThreads && wide < words) wide *= 2;
  return wide;
}

__host__ __device__ inline uint32_t steps_per_row(uint32_t words) {
  const uint32_t wide = words_wide(words);
  return words / wide + (words % wide != 0);
}

inline int64_t blocks_for_rows(int64_t kept, uint32_t words) {
  const int64_t tall = kGatherThreads / words_wide(words);
  return divide_up(divide_up(kept, tall) * steps_per_row(words), kUnits);
}

template <class Word>
__device__ void gather_rows_block(const Part& part, uint32_t block) {
  const uint32_t wide = words_wide(part.whole), steps = steps_per_row(part.whole);
  const uint32_t tall = kGatherThreads / wide, lane = threadIdx.x % wide;
  const uint64_t first = static_cast<uint64_t>(block) * kUnits;
  uint64_t row = first / steps * tall + threadIdx.x / wide;
  uint32_t step = first % steps;

  uint64_t from[kUnits], to[kUnits];
  uint32_t word[kUnits];
  bool inside[kUnits], bad = false;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    to[i] = row;
    word[i] = step * wide + lane;
    inside[i] = row < part.kept && word[i] < part.whole;
    from[i] = inside[i] ? part.index[row] : 0;
    if (++step == steps) {
      step = 0;
      row += tall;
    }
  }
#pragma unroll
  for (int i = 0; i < kUnits; ++i) bad = bad || from[i] >= part.bound;
  if (bad) __trap();

  Word words[kUnits];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (inside[i]) words[i] = reinterpret_cast<const Word*>(part.data + from[i] * part.stride)[word[i]];
  }
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (inside[i]) reinterpret_cast<Word*>(part.out + to[i] * part.out_stride)[word[i]] = words[i];
  }
}

}  // namespace pruneengine::cuda
