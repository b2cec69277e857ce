// A matrix as cells of eight columns, in the order of rows and columns; the last cell of a row may be shorter.
#pragma once

#include "keys.cuh"

namespace pruneengine::cuda {

struct Scored {
  const void* data;
  const float* norm;
  uint8_t* mask;
  int64_t stride;
  int64_t first_cell;  // of this matrix among the cells of all
  uint32_t columns;
  uint32_t cells;  // of a row
  bool wide;       // whole cells can be read 16 bytes at a time
  bool wide_mask;  // whole cells of a bool mask can be written at once
};

inline Scored scored(const MaskedScores& matrix, int64_t first_cell) {
  const Scores& scores = matrix.scores;
  const int64_t bytes = scores.dtype == Dtype::float32 ? 4 : 2;
  const uint64_t read = reinterpret_cast<uintptr_t>(scores.values.data) | reinterpret_cast<uintptr_t>(scores.norm) |
                        static_cast<uint64_t>(scores.values.stride * bytes);
  const uint64_t written = reinterpret_cast<uintptr_t>(matrix.mask) | static_cast<uint64_t>(scores.columns);
  Scored result;
  result.data = scores.values.data;
  result.norm = scores.norm;
  result.mask = matrix.mask;
  result.stride = scores.values.stride;
  result.first_cell = first_cell;
  result.columns = static_cast<uint32_t>(scores.columns);
  result.cells = static_cast<uint32_t>(divide_up(scores.columns, kCell));
  result.wide = read % 16 == 0;
  result.wide_mask = written % kCell == 0;
  return result;
}

// One bit for each column that a cell has.
__device__ __forceinline__ uint32_t columns_of(const Scored& matrix, uint32_t cell) {
  const uint32_t left = matrix.columns - cell * kCell;
  return left < kCell ? (1u << left) - 1 : 0xffu;
}

template <class T>
__device__ __forceinline__ Cell<T> read_cell(const T* from, uint32_t columns, bool wide) {
  if (wide && columns == 0xffu) return *reinterpret_cast<const Cell<T>*>(from);
  Cell<T> cell = {};
#pragma unroll
  for (int i = 0; i < kCell; ++i) {
    if (columns >> i & 1) cell.at[i] = from[i];
  }
  return cell;
}

// Calls use(columns, row, cell, keys) for `count` cells from (row, cell) on, kThreads at a time in order, on every
// thread alike: columns is 0 where a thread has no cell. The loads of kBatch rounds are under way at once.
template <class Source, int kThreads, class Use>
__device__ __forceinline__ void walk(const Scored& matrix, int64_t row, uint32_t cell, int64_t count, Use use) {
  using Value = typename Source::Value;
  constexpr int kBatch = Source::kBatch;
  const uint32_t step_rows = kThreads / matrix.cells, step_cells = kThreads % matrix.cells;
  const auto step = [&](int64_t& at_row, uint32_t& at_cell) {
    at_row += step_rows;
    at_cell += step_cells;
    if (at_cell >= matrix.cells) {
      at_cell -= matrix.cells;
      ++at_row;
    }
  };
  cell += threadIdx.x;
  row += cell / matrix.cells;
  cell %= matrix.cells;

  for (int64_t begin = 0; begin < count; begin += kThreads * kBatch) {
    Cell<Value> values[kBatch];
    Cell<float> norms[kBatch];
    int64_t ahead_row = row;
    uint32_t ahead_cell = cell;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (begin + b * kThreads + threadIdx.x < count) {
        const uint32_t columns = columns_of(matrix, ahead_cell);
        const int64_t column = static_cast<int64_t>(ahead_cell) * kCell;
        const Value* from = static_cast<const Value*>(matrix.data) + ahead_row * matrix.stride + column;
        values[b] = read_cell(from, columns, matrix.wide);
        if (Source::kNormed) norms[b] = read_cell(matrix.norm + column, columns, matrix.wide);
      }
      step(ahead_row, ahead_cell);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const bool mine = begin + b * kThreads + threadIdx.x < count;
      uint32_t keys[kCell];
#pragma unroll
      for (int i = 0; i < kCell; ++i) keys[i] = Source::key(values[b].at[i], Source::kNormed ? norms[b].at[i] : 0.0f);
      use(mine ? columns_of(matrix, cell) : 0u, row, cell, keys);
      step(row, cell);
    }
  }
}

// Adds the next digit of the keys that agree with `prefix` above it to the bins.
__device__ __forceinline__ void count_digits(uint32_t columns, const uint32_t (&keys)[kCell], uint32_t prefix,
                                             int shift, int width, unsigned* bins) {
  const uint32_t above = static_cast<uint32_t>(~uint64_t{0} << (shift + width)), digit = (1u << width) - 1;
#pragma unroll
  for (int i = 0; i < kCell; ++i) {
    if ((columns >> i & 1) && ((keys[i] ^ prefix) & above) == 0) atomicAdd(&bins[keys[i] >> shift & digit], 1u);
  }
}

struct Compared {  // one bit a column
  uint32_t below;
  uint32_t tied;
};

__device__ __forceinline__ Compared compare(uint32_t columns, const uint32_t (&keys)[kCell], uint32_t key) {
  Compared result = {0, 0};
#pragma unroll
  for (int i = 0; i < kCell; ++i) {
    result.below |= static_cast<uint32_t>(keys[i] < key) << i;
    result.tied |= static_cast<uint32_t>(keys[i] == key) << i;
  }
  return {result.below & columns, result.tied & columns};
}

// The lowest `count` of the bits set.
__device__ __forceinline__ uint32_t lowest(uint32_t bits, int64_t count) {
  while (__popc(bits) > count && bits != 0) bits ^= 0x80000000u >> __clz(bits);
  return bits;
}

__device__ __forceinline__ void write_cell(const Scored& matrix, int64_t row, uint32_t cell, uint32_t columns,
                                           uint32_t marked, bool bits) {
  if (bits) {
    matrix.mask[row * matrix.cells + cell] = static_cast<uint8_t>(marked);
    return;
  }
  uint8_t* to = matrix.mask + row * matrix.columns + static_cast<int64_t>(cell) * kCell;
  if (matrix.wide_mask) {
    // The product has bit i of four in the lowest bit of byte i.
    const auto spread = [](uint32_t four) { return four * 0x00204081u & 0x01010101u; };
    *reinterpret_cast<uint2*>(to) = make_uint2(spread(marked & 0xfu), spread(marked >> 4));
    return;
  }
#pragma unroll
  for (int i = 0; i < kCell; ++i) {
    if (columns >> i & 1) to[i] = marked >> i & 1;
  }
}

}  // namespace pruneengine::cuda
