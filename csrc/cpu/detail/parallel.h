// Work in fixed blocks: the order of every sum follows from the shape, so one thread and sixty-four agree to the bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace pruneengine::cpu {

// Opening a parallel region costs tens of microseconds on a quiet machine and a scheduler's time slice, 20 ms, on a
// busy one. Below this many bytes, 0.1 ms of reading, there is not enough to win.
constexpr int64_t kParallelBytes = int64_t{1} << 21;

struct Blocks {
  int64_t total;
  int64_t size;

  int64_t count() const { return (total + size - 1) / size; }
  int64_t begin(int64_t block) const { return block * size; }
  int64_t length(int64_t block) const { return std::min(size, total - begin(block)); }
};

constexpr int64_t kMostBlocks = 32;

// At most 32 blocks of at least `smallest`, each a multiple of `smallest`.
inline Blocks split(int64_t total, int64_t smallest) {
  const int64_t pieces = (total + smallest - 1) / smallest;
  return {total, smallest * std::max<int64_t>(1, (pieces + kMostBlocks - 1) / kMostBlocks)};
}

inline int useful_threads(int64_t bytes, int threads) { return bytes < kParallelBytes ? 1 : std::max(1, threads); }

// Calls body(task, thread) for every task, in any order.
template <class Body>
void parallel_for(int64_t tasks, int threads, Body body) {
#ifdef _OPENMP
  if (threads > 1 && tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
    return;
  }
#endif
  for (int64_t task = 0; task < tasks; ++task) body(task, 0);
}

// An array for partial results, not cleared, in memory that the calling thread keeps: faulting in fresh pages at every
// call can cost more than the sums. Valid until the thread asks for the same slot again.
template <class T>
T* partials(int slot, int64_t count) {
  static thread_local std::vector<T> kept[2];
  if (static_cast<int64_t>(kept[slot].size()) < count) kept[slot].resize(count);
  return kept[slot].data();
}

// out[i] = sum over parts of partial[part * stride + i], parts in ascending order.
inline void sum_parts(const float* partial, int64_t parts, int64_t stride, int64_t count, float* out) {
  std::fill(out, out + count, 0.0f);
  for (int64_t part = 0; part < parts; ++part) {
    const float* row = partial + part * stride;
    for (int64_t i = 0; i < count; ++i) out[i] += row[i];
  }
}

}  // namespace pruneengine::cpu
