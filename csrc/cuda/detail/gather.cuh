// What one launch of the gather is told: its parts, and which of its blocks work on which.
#pragma once

#include "common.cuh"

namespace pruneengine::cuda {

constexpr int kMaxParts = 64;
constexpr int kGatherThreads = 256;
constexpr int kWordBytes = 16;

struct Part {
  const char* data;
  const int64_t* index;
  char* out;
  int64_t stride;      // in bytes
  int64_t out_stride;  // in bytes
  uint32_t bound;
  uint32_t kept;
  uint32_t whole;  // of the other axis: words a row where rows are gathered, rows where columns are
  uint32_t first_block;
};

enum class Axis : uint8_t { rows, columns, aligned_columns };  // aligned: 16-byte copies are possible

struct Table {
  Part parts[kMaxParts];
  Axis axis[kMaxParts];
  uint8_t word_bytes[kMaxParts];  // of a row's words, or of an element where columns are gathered
  int count;
};
static_assert(sizeof(Table) <= 4096, "kernel parameters are limited to 4 KB before CUDA 12.1");

// The last part that begins at or before the block.
__device__ __forceinline__ int part_of(const Table& table, uint32_t block) {
  int part = 0;
#pragma unroll
  for (int step = kMaxParts / 2; step > 0; step /= 2) {
    if (part + step < table.count && table.parts[part + step].first_block <= block) part += step;
  }
  return part;
}

}  // namespace pruneengine::cuda
