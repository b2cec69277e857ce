// The kept columns of a matrix: how the index is best followed is decided once, then every row does the same.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../../ops.h"
#include "compress.h"

namespace pruneengine::cpu {

constexpr int64_t kRunBytes = 64;      // mean length from which copying whole runs beats element by element
constexpr int64_t kSparseColumns = 8;  // fewer than one kept of this many: most chunks would be empty

template <class T>
class ColumnGather {
 public:
  explicit ColumnGather(const Gather& part) : part_(part) {
    const int64_t *index = part.index, kept = part.kept;
    for (int64_t i = 0; i < kept;) {
      int64_t end = i + 1;
      while (end < kept && index[end] == index[end - 1] + 1) ++end;
      runs_.push_back({index[i], i, end - i});
      i = end;
    }
    // Half the index bytes leave more of the first-level cache to the data.
    const bool narrow = part.bound <= UINT32_MAX;
    if (!narrow || kept * static_cast<int64_t>(sizeof(T)) >= kRunBytes * static_cast<int64_t>(runs_.size())) return;
    runs_.clear();
    columns_.assign(index, index + kept);
    const auto not_rising = [](int64_t a, int64_t b) { return a >= b; };
    const bool ascending = std::adjacent_find(index, index + kept, not_rising) == index + kept;
    if (can_compress<T> && has_compress() && ascending && kept * kSparseColumns >= part.bound) plan_chunks();
  }

  void rows(int64_t begin, int64_t end) const {
    int64_t row = begin;
    if constexpr (can_compress<T>) {
      // A table entry and a mask serve four rows.
      for (; !masks_.empty() && row + 4 <= end; row += 4) chunks_of<4>(row);
    }
    for (; row < end; ++row) {
      if (!runs_.empty()) {
        for (const Run& run : runs_) std::memcpy(to(row) + run.to, from(row) + run.from, run.count * sizeof(T));
      } else if (!masks_.empty()) {
        chunks_of<1>(row);
      } else {
        elements(row, 0);
      }
    }
  }

 private:
  struct Run {  // consecutive columns
    int64_t from;
    int64_t to;
    int64_t count;
  };

  const T* from(int64_t row) const { return static_cast<const T*>(part_.data) + row * part_.stride; }
  T* to(int64_t row) const { return static_cast<T*>(part_.out) + row * part_.out_stride; }

  // Chunks that neither read past a row of the matrix nor write past a row of the result; the rest goes one by one.
  void plan_chunks() {
    std::vector<uint8_t> masks(part_.bound / kChunk);
    int64_t fitting = 0, i = 0;
    for (; fitting < static_cast<int64_t>(masks.size()) && i + kChunk <= part_.kept; ++fitting) {
      for (; i < part_.kept && columns_[i] / kChunk == fitting; ++i) masks[fitting] |= 1 << columns_[i] % kChunk;
    }
    masks.resize(fitting);
    masks_ = std::move(masks);
    chunked_ = i;
  }

  template <int kRows>
  void chunks_of(int64_t row) const {
    if constexpr (can_compress<T>) {
      const int64_t count = static_cast<int64_t>(masks_.size());
      compress<kRows>(from(row), part_.stride, masks_.data(), count, to(row), part_.out_stride);
    }
    for (int64_t r = row; r < row + kRows; ++r) elements(r, chunked_);
  }

  // Elements are packed into words of eight bytes: a store for each would be the bottleneck.
  void elements(int64_t row, int64_t i) const {
    constexpr int64_t kPacked = sizeof(uint64_t) / sizeof(T);
    const int64_t kept = part_.kept;
    const T* weight = from(row);
    T* out = to(row);
    for (; i + kPacked <= kept; i += kPacked) {
      uint64_t word = 0;
      for (int64_t j = 0; j < kPacked; ++j) {
        word |= static_cast<uint64_t>(weight[columns_[i + j]]) << (8 * sizeof(T) * j);
      }
      std::memcpy(out + i, &word, sizeof word);
    }
    for (; i < kept; ++i) out[i] = weight[columns_[i]];
  }

  Gather part_;
  std::vector<Run> runs_;
  std::vector<uint32_t> columns_;
  std::vector<uint8_t> masks_;  // per chunk, its kept columns
  int64_t chunked_ = 0;         // how many kept columns they hold
};

}  // namespace pruneengine::cpu
