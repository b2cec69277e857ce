// Rows or columns named by an index, copied into a buffer that may be part of a larger one.
#include <cstring>
#include <vector>

#include "../ops.h"
#include "parallel.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kTaskBytes = 1 << 18;
constexpr int64_t kRunBytes = 64;  // mean length from which copying whole runs beats element by element

int64_t rows_per_task(int64_t row_bytes) { return std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(1, row_bytes)); }

struct Run {  // consecutive columns
  int64_t from;
  int64_t to;
  int64_t count;
};

std::vector<Run> runs_of(const int64_t* index, int64_t kept) {
  std::vector<Run> runs;
  for (int64_t i = 0; i < kept;) {
    int64_t end = i + 1;
    while (end < kept && index[end] == index[end - 1] + 1) ++end;
    runs.push_back({index[i], i, end - i});
    i = end;
  }
  return runs;
}

// Elements are packed into words of eight bytes: a store for each would be the bottleneck.
template <class T>
void columns_of(const T* weight, const std::vector<uint32_t>& index, T* out) {
  constexpr size_t kPacked = sizeof(uint64_t) / sizeof(T);
  const size_t kept = index.size();
  size_t i = 0;
  for (; i + kPacked <= kept; i += kPacked) {
    uint64_t word = 0;
    for (size_t j = 0; j < kPacked; ++j) word |= static_cast<uint64_t>(weight[index[i + j]]) << (8 * sizeof(T) * j);
    std::memcpy(out + i, &word, sizeof word);
  }
  for (; i < kept; ++i) out[i] = weight[index[i]];
}

template <class T>
void run_columns(Matrix weight, int64_t rows, const int64_t* index, int64_t kept, void* out, int64_t out_stride,
                 int threads) {
  const int64_t row_bytes = kept * static_cast<int64_t>(sizeof(T));
  const Blocks by_row{rows, rows_per_task(row_bytes)};
  const std::vector<Run> runs = runs_of(index, kept);
  // Half the index bytes leave more of the first-level cache to the data.
  const bool narrow = kept == 0 || *std::max_element(index, index + kept) <= UINT32_MAX;
  const bool whole_runs = !narrow || row_bytes >= kRunBytes * static_cast<int64_t>(runs.size());
  const std::vector<uint32_t> columns(index, whole_runs ? index : index + kept);

  parallel_for(by_row.count(), useful_threads(rows * row_bytes, threads), [&](int64_t block, int) {
    for (int64_t row = by_row.begin(block); row < by_row.begin(block) + by_row.length(block); ++row) {
      const T* from = static_cast<const T*>(weight.data) + row * weight.stride;
      T* to = static_cast<T*>(out) + row * out_stride;
      if (!whole_runs) {
        columns_of(from, columns, to);
        continue;
      }
      for (const Run& run : runs) std::memcpy(to + run.to, from + run.from, run.count * sizeof(T));
    }
  });
}

}  // namespace

void gather_rows(Matrix weight, int element_bytes, int64_t columns, const int64_t* index, int64_t kept, void* out,
                 int64_t out_stride, int threads) {
  const int64_t row_bytes = columns * element_bytes;
  const Blocks by_row{kept, rows_per_task(row_bytes)};
  const char* from = static_cast<const char*>(weight.data);
  char* to = static_cast<char*>(out);
  parallel_for(by_row.count(), useful_threads(kept * row_bytes, threads), [&](int64_t block, int) {
    for (int64_t i = by_row.begin(block); i < by_row.begin(block) + by_row.length(block); ++i) {
      std::memcpy(to + i * out_stride * element_bytes, from + index[i] * weight.stride * element_bytes, row_bytes);
    }
  });
}

void gather_columns(Matrix weight, int element_bytes, int64_t rows, const int64_t* index, int64_t kept, void* out,
                    int64_t out_stride, int threads) {
  switch (element_bytes) {
    case 1: return run_columns<uint8_t>(weight, rows, index, kept, out, out_stride, threads);
    case 2: return run_columns<uint16_t>(weight, rows, index, kept, out, out_stride, threads);
    case 4: return run_columns<uint32_t>(weight, rows, index, kept, out, out_stride, threads);
    case 8: return run_columns<uint64_t>(weight, rows, index, kept, out, out_stride, threads);
  }
}

}  // namespace pruneengine::cpu
