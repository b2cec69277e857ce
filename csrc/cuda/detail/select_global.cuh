// The memory and the order of work of a selection over many matrices.
//
// All cells, in the order of matrices, rows and columns, are cut into at most kChunks chunks of one size, a block each.
// Counts of the last digit are kept a chunk: from them follows, without another read, how many ties lie before each.
#pragma once

#include "cells.cuh"

namespace pruneengine::cuda {

constexpr int kChunks = 4096;
constexpr int64_t kSmallestChunk = 1024;  // cells
constexpr int kChunkThreads = 256;
constexpr int kGlobalDigitBits = 12;
constexpr int kGlobalBins = 1 << kGlobalDigitBits;
constexpr int kLastBins = 256;  // 32 and 16 bits are 12 + 12 + 8 and 12 + 4

struct Search {
  uint32_t key;  // the digits found so far
  unsigned long long wanted;  // of the keys that agree with it
  unsigned long long bins[kGlobalBins];
  unsigned last_counts[kChunks][kLastBins];
  unsigned long long ties_before[kChunks];
};

struct Chunks {
  const Scored* matrices;
  int matrix_count;
  int64_t cells;  // of all matrices
  int64_t size;   // cells a chunk

  __host__ __device__ int64_t count() const { return (cells + size - 1) / size; }
};

// The table of matrices lies behind the search.
inline Scored* table_in(void* scratch) {
  return reinterpret_cast<Scored*>(static_cast<char*>(scratch) + divide_up(sizeof(Search), 16) * 16);
}

// walk() over the cells of the block's chunk.
template <class Source, class Use>
__device__ __forceinline__ void walk_chunk(const Chunks& chunks, Use use) {
  int64_t cell = blockIdx.x * chunks.size;
  const int64_t end = min(cell + chunks.size, chunks.cells);
  int low = 0, high = chunks.matrix_count;  // the last matrix that begins at or before the cell is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (chunks.matrices[middle].first_cell <= cell ? low : high) = middle;
  }
  for (int i = low; cell < end; ++i) {
    const Scored matrix = chunks.matrices[i];
    // The compiler knows this of kernel parameters, not of addresses it finds in memory.
    __builtin_assume(__isGlobal(matrix.data));
    __builtin_assume(__isGlobal(matrix.norm));
    __builtin_assume(__isGlobal(matrix.mask));
    const int64_t stop = i + 1 < chunks.matrix_count ? min(end, chunks.matrices[i + 1].first_cell) : end;
    if (stop == cell) continue;  // an empty matrix
    const int64_t inside = cell - matrix.first_cell;
    walk<Source, kChunkThreads>(matrix, inside / matrix.cells, inside % matrix.cells, stop - cell,
                                [&](uint32_t columns, int64_t row, uint32_t at, const uint32_t(&keys)[kCell]) {
                                  use(matrix, columns, row, at, keys);
                                });
    cell = stop;
  }
}

}  // namespace pruneengine::cuda
