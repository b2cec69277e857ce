// The k-th smallest value of each row, and the mask of exactly k smallest, without sorting.
//
// Sign-magnitude bits read as two's complement order like the floats they stand for, and -0.0 meets 0.0. The k-th key
// is found by halving its range and counting: each count is one vectorised pass over 16-bit keys. float32 keys are
// settled in two halves, the lower one only among the elements that share the upper.
#include <vector>

#include "numeric.h"
#include "parallel.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kChunk = 1 << 14;  // elements whose matches a 16-bit counter can hold
constexpr int64_t kTieChunk = 512;   // elements whose ties are settled at once
constexpr int64_t kRows = 8;         // rows a task

PRUNE_INLINE int32_t key_of(float score) {
  const int32_t bits = static_cast<int32_t>(as_bits(score)), sign = bits >> 31;
  return ((bits & 0x7fffffff) ^ sign) - sign;
}

PRUNE_INLINE int16_t key_of_bits(uint16_t score) {
  const int16_t bits = static_cast<int16_t>(score), sign = static_cast<int16_t>(bits >> 15);
  return static_cast<int16_t>(((bits & 0x7fff) ^ sign) - sign);
}
PRUNE_INLINE int16_t key_of(Half score) { return key_of_bits(score.bits); }
PRUNE_INLINE int16_t key_of(Bfloat score) { return key_of_bits(score.bits); }

PRUNE_INLINE int16_t upper_half(int32_t key) { return static_cast<int16_t>(key >> 16); }
PRUNE_INLINE int16_t upper_half(int16_t key) { return key; }

template <class T>
using Key = decltype(key_of(T{}));

template <class T>
float score_of(Key<T> key) {
  const uint32_t bits = key < 0 ? (1u << (8 * sizeof(T) - 1)) | static_cast<uint32_t>(-key) : key;
  T score;
  std::memcpy(&score, &bits, sizeof score);  // little-endian: the lower bytes hold a 16-bit score
  return widen(score);
}

// Clones are plain functions: the attribute is unreliable on templates.
#define PRUNE_PASSES(T)                                                                       \
  PRUNE_CLONES void upper_keys(const T* scores, int64_t count, int16_t* keys) {               \
    for (int64_t i = 0; i < count; ++i) keys[i] = upper_half(key_of(scores[i]));              \
  }                                                                                           \
  PRUNE_CLONES void mark_up_to(const T* scores, int64_t count, Key<T> bound, bool* mask) {    \
    for (int64_t i = 0; i < count; ++i) mask[i] = key_of(scores[i]) <= bound;                 \
  }                                                                                           \
  PRUNE_CLONES void mark_below(const T* scores, int64_t count, Key<T> bound, bool* mask) {    \
    for (int64_t i = 0; i < count; ++i) mask[i] = key_of(scores[i]) < bound;                  \
  }                                                                                           \
  PRUNE_CLONES int64_t count_tied(const T* scores, int64_t count, Key<T> bound) {             \
    uint16_t ties = 0;                                                                        \
    for (int64_t i = 0; i < count; ++i) ties += key_of(scores[i]) == bound;                   \
    return ties;                                                                              \
  }
PRUNE_PASSES(float)
PRUNE_PASSES(Half)
PRUNE_PASSES(Bfloat)
#undef PRUNE_PASSES

PRUNE_CLONES int64_t count_up_to(const int16_t* keys, int64_t count, int16_t bound) {
  int64_t found = 0;
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t end = std::min(count, begin + kChunk);
    uint16_t matches = 0;
    for (int64_t i = begin; i < end; ++i) matches += keys[i] <= bound;
    found += matches;
  }
  return found;
}

PRUNE_CLONES void key_range(const int16_t* keys, int64_t count, int16_t* low, int16_t* high) {
  int16_t smallest = keys[0], largest = keys[0];
  for (int64_t i = 0; i < count; ++i) {
    smallest = keys[i] < smallest ? keys[i] : smallest;
    largest = keys[i] > largest ? keys[i] : largest;
  }
  *low = smallest;
  *high = largest;
}

template <class K>
struct Found {
  K key;          // the k-th smallest
  int64_t below;  // how many keys are smaller
  int64_t up_to;  // how many are smaller or equal
};

Found<int16_t> find(const int16_t* keys, int64_t count, int64_t k) {
  int16_t smallest, largest;
  key_range(keys, count, &smallest, &largest);
  int32_t low = smallest, high = largest;
  int64_t below = 0, up_to = count;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    const int64_t found = count_up_to(keys, count, static_cast<int16_t>(middle));
    if (found >= k) {
      high = middle;
      up_to = found;
    } else {
      low = middle + 1;
      below = found;
    }
  }
  return {static_cast<int16_t>(low), below, up_to};
}

template <class T>
Found<Key<T>> kth(const T* scores, int64_t count, int64_t k, int16_t* keys) {
  upper_keys(scores, count, keys);
  return find(keys, count, k);
}

// Lower halves of the scores whose upper half is `upper`, written over the keys: `kept` never overtakes the reading.
// Few elements share the upper half, so most chunks are passed over after one vectorised comparison.
PRUNE_CLONES int64_t lower_keys(const float* scores, int16_t* keys, int64_t count, int16_t upper) {
  constexpr int64_t kStep = 64;
  int64_t kept = 0;
  for (int64_t begin = 0; begin < count; begin += kStep) {
    const int64_t end = std::min(count, begin + kStep);
    uint16_t matches = 0;
    for (int64_t i = begin; i < end; ++i) matches += keys[i] == upper;
    for (int64_t i = begin; matches > 0; ++i) {
      const bool shared = keys[i] == upper;
      keys[kept] = static_cast<int16_t>((key_of(scores[i]) & 0xffff) - 0x8000);
      kept += shared;
      matches -= shared;
    }
  }
  return kept;
}

template <>
Found<int32_t> kth(const float* scores, int64_t count, int64_t k, int16_t* keys) {
  upper_keys(scores, count, keys);
  const Found<int16_t> upper = find(keys, count, k);
  const int64_t kept = lower_keys(scores, keys, count, upper.key);
  const Found<int16_t> lower = find(keys, kept, k - upper.below);
  return {upper.key * 65536 + lower.key + 0x8000, upper.below + lower.below, upper.below + lower.up_to};
}

// Marks everything up to the k-th key, then gives up the surplus ties, highest index first.
template <class T>
void mark(const T* scores, int64_t count, int64_t k, const Found<Key<T>>& found, bool* mask) {
  mark_up_to(scores, count, found.key, mask);
  int64_t surplus = found.up_to - k;
  for (int64_t end = count; surplus > 0; end -= kTieChunk) {
    const int64_t begin = std::max<int64_t>(0, end - kTieChunk);
    const int64_t ties = count_tied(scores + begin, end - begin, found.key);
    if (ties <= surplus) {
      mark_below(scores + begin, end - begin, found.key, mask + begin);
      surplus -= ties;
      continue;
    }
    for (int64_t i = end - 1; surplus > 0; --i) {
      const bool tied = key_of(scores[i]) == found.key;
      mask[i] = mask[i] && !tied;
      surplus -= tied;
    }
  }
}

template <class T, class Finish>
void each_row(Matrix scores, int64_t rows, int64_t columns, int64_t k, int threads, Finish finish) {
  threads = useful_threads(rows * columns * static_cast<int64_t>(sizeof(T)), threads);
  const Blocks by_row{rows, kRows};
  std::vector<int16_t> scratch(threads * columns);
  parallel_for(by_row.count(), threads, [&](int64_t block, int thread) {
    int16_t* keys = scratch.data() + thread * columns;
    for (int64_t i = 0; i < by_row.length(block); ++i) {
      const int64_t row = by_row.begin(block) + i;
      const T* begin = static_cast<const T*>(scores.data) + row * scores.stride;
      finish(row, begin, kth<T>(begin, columns, k, keys));
    }
  });
}

template <class T>
void run_kth(Matrix scores, int64_t rows, int64_t columns, int64_t k, float* values, int threads) {
  each_row<T>(scores, rows, columns, k, threads,
              [=](int64_t row, const T*, const Found<Key<T>>& found) { values[row] = score_of<T>(found.key); });
}

template <class T>
void run_mask(Matrix scores, int64_t rows, int64_t columns, int64_t k, bool* mask, int threads) {
  each_row<T>(scores, rows, columns, k, threads, [=](int64_t row, const T* begin, const Found<Key<T>>& found) {
    mark<T>(begin, columns, k, found, mask + row * columns);
  });
}

}  // namespace

void kth_value(Matrix scores, Dtype dtype, int64_t rows, int64_t columns, int64_t k, float* values, int threads) {
  switch (dtype) {
    case Dtype::float32: return run_kth<float>(scores, rows, columns, k, values, threads);
    case Dtype::float16: return run_kth<Half>(scores, rows, columns, k, values, threads);
    case Dtype::bfloat16: return run_kth<Bfloat>(scores, rows, columns, k, values, threads);
  }
}

void select_mask(Matrix scores, Dtype dtype, int64_t rows, int64_t columns, int64_t k, bool* mask, int threads) {
  if (k == 0) {
    std::fill(mask, mask + rows * columns, false);
    return;
  }
  switch (dtype) {
    case Dtype::float32: return run_mask<float>(scores, rows, columns, k, mask, threads);
    case Dtype::float16: return run_mask<Half>(scores, rows, columns, k, mask, threads);
    case Dtype::bfloat16: return run_mask<Bfloat>(scores, rows, columns, k, mask, threads);
  }
}

}  // namespace pruneengine::cpu
