// n:m sparsity: which m - n of every m consecutive scores are the smallest, and the weight without them.
//
// The rank of a score in its group is the number of scores that are smaller, or equal and of a lower column. Groups of 4
// and 8 lie side by side in vectors, which are compared with themselves rotated within the groups.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "keys.h"
#include "masked.h"
#include "numeric.h"
#include "pages.h"
#include "parallel.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kChunk = 1 << 11;  // keys that stay in the first-level cache
constexpr int64_t kTaskScores = 1 << 17;

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector) && __has_builtin(__builtin_convertvector)
#define PRUNE_VECTORS
#endif
#endif

#ifdef PRUNE_VECTORS
typedef int16_t Narrow __attribute__((vector_size(32)));
typedef int32_t Wide __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));

constexpr int64_t kStep = 16;  // keys at a time, whole groups of either size

template <class V>
using Lanes = std::make_index_sequence<sizeof(V) / sizeof(V{}[0])>;

// The key kBy places on in the same group of kGroup; where that one has a lower column it wins ties, so 1 is taken off.
// Keys are far enough from the smallest integer.
template <int kGroup, int kBy, class V, size_t... lane>
PRUNE_INLINE V rival(V keys, std::index_sequence<lane...>) {
  constexpr int kLast = kGroup - 1;
  return __builtin_shufflevector(keys, keys, static_cast<int>((lane & ~kLast) | ((lane + kBy) & kLast))...) -
         V{((lane & kLast) + kBy > kLast)...};
}

template <class V, size_t... by>
PRUNE_INLINE V ranks(V keys, std::index_sequence<by...>) {
  V rank{};
  ((rank -= keys > rival<sizeof...(by) + 1, by + 1>(keys, Lanes<V>())), ...);
  return rank;
}

template <int kGroup>
PRUNE_INLINE Narrow among_smallest(const int16_t* keys, int dropped) {
  Narrow loaded;
  std::memcpy(&loaded, keys, sizeof loaded);
  return ranks(loaded, std::make_index_sequence<kGroup - 1>()) < static_cast<int16_t>(dropped);
}

template <int kGroup>
PRUNE_INLINE Narrow among_smallest(const int32_t* keys, int dropped) {
  Wide first, second;
  std::memcpy(&first, keys, sizeof first);
  std::memcpy(&second, keys + kStep / 2, sizeof second);
  first = ranks(first, std::make_index_sequence<kGroup - 1>()) < dropped;
  second = ranks(second, std::make_index_sequence<kGroup - 1>()) < dropped;
  return __builtin_shufflevector(reinterpret_cast<Narrow>(first), reinterpret_cast<Narrow>(second), 0, 2, 4, 6, 8, 10,
                                 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}

// Both return how many keys they dealt with, whole groups.
#define PRUNE_GROUPS(NAME, KEY, GROUP)                                                            \
  PRUNE_CLONES int64_t NAME(const KEY* keys, int64_t count, int dropped, uint8_t* mask) {         \
    int64_t i = 0;                                                                                \
    for (; i + kStep <= count; i += kStep) {                                                      \
      const Bytes chosen = -__builtin_convertvector(among_smallest<GROUP>(keys + i, dropped), Bytes); \
      std::memcpy(mask + i, &chosen, sizeof chosen);                                              \
    }                                                                                             \
    return i;                                                                                     \
  }
PRUNE_GROUPS(mark_fours, int16_t, 4)
PRUNE_GROUPS(mark_fours, int32_t, 4)
PRUNE_GROUPS(mark_eights, int16_t, 8)
PRUNE_GROUPS(mark_eights, int32_t, 8)
#undef PRUNE_GROUPS

template <class Key>
int64_t mark_vectors(const Key* keys, int64_t count, int m, int dropped, uint8_t* mask) {
  return m == 4 ? mark_fours(keys, count, dropped, mask) : m == 8 ? mark_eights(keys, count, dropped, mask) : 0;
}
#else
template <class Key>
int64_t mark_vectors(const Key*, int64_t, int, int, uint8_t*) {
  return 0;
}
#endif

#define PRUNE_ANY_GROUP(KEY)                                                                     \
  PRUNE_CLONES void mark_group(const KEY* keys, int m, int dropped, uint8_t* mask) {             \
    for (int i = 0; i < m; ++i) {                                                                \
      KEY rank = 0;                                                                              \
      for (int j = 0; j < i; ++j) rank += keys[j] <= keys[i];                                    \
      for (int j = i + 1; j < m; ++j) rank += keys[j] < keys[i];                                 \
      mask[i] = rank < dropped;                                                                  \
    }                                                                                            \
  }
PRUNE_ANY_GROUP(int16_t)
PRUNE_ANY_GROUP(int32_t)
#undef PRUNE_ANY_GROUP

template <class Key>
void mark_groups(const Key* keys, int64_t count, int m, int dropped, uint8_t* mask) {
  for (int64_t i = mark_vectors(keys, count, m, dropped, mask); i < count; i += m) {
    mark_group(keys + i, m, dropped, mask + i);
  }
}

void make_keys(const Segment& segment, int16_t* keys) { upper_keys(segment, keys); }
void make_keys(const Segment& segment, int32_t* keys) { whole_keys(segment, keys); }

// The key of a magnitude is the magnitude of the key.
PRUNE_CLONES void to_magnitudes(int16_t* keys, int64_t count) {
  for (int64_t i = 0; i < count; ++i) keys[i] = static_cast<int16_t>(std::abs(keys[i]));
}
PRUNE_CLONES void to_magnitudes(int32_t* keys, int64_t count) {
  for (int64_t i = 0; i < count; ++i) keys[i] = std::abs(keys[i]);
}

PRUNE_CLONES void complement(uint8_t* mask, int64_t count) {
  for (int64_t i = 0; i < count; ++i) mask[i] ^= 1;
}

// Calls body(segment, offset, mask) with the mask of a chunk of whole groups, `offset` scores into the matrix.
template <class Key, class Body>
void each_chunk(const Scores& scores, bool magnitudes, int n, int m, int threads, Body body) {
  const Blocks by_row{scores.rows, std::max<int64_t>(1, kTaskScores / std::max<int64_t>(1, scores.columns))};
  const Blocks by_chunk{scores.columns, kChunk / m * m};
  threads = useful_threads(scores.rows * scores.columns * static_cast<int64_t>(sizeof(Key)), threads);
  parallel_for(by_row.count(), threads, [&](int64_t block, int) {
    alignas(64) Key keys[kChunk];
    alignas(64) uint8_t mask[kChunk];
    for (int64_t row = by_row.begin(block); row < by_row.begin(block) + by_row.length(block); ++row) {
      for (int64_t chunk = 0; chunk < by_chunk.count(); ++chunk) {
        const Segment segment = segment_of(scores, row, by_chunk.begin(chunk), by_chunk.length(chunk));
        make_keys(segment, keys);
        if (magnitudes) to_magnitudes(keys, segment.count);
        mark_groups(keys, segment.count, m, m - n, mask);
        body(segment, row * scores.columns + by_chunk.begin(chunk), mask);
      }
    }
  });
}

template <class Body>
void each_mask(const Scores& scores, bool magnitudes, int n, int m, int threads, Body body) {
  if (has_lower_half(scores)) {
    each_chunk<int32_t>(scores, magnitudes, n, m, threads, body);
  } else {
    each_chunk<int16_t>(scores, magnitudes, n, m, threads, body);
  }
}

}  // namespace

void nm_mask(Scores scores, int n, int m, bool* mask, int threads) {
  advise_large_pages(mask, scores.rows * scores.columns);
  each_mask(scores, false, n, m, threads, [=](const Segment& segment, int64_t offset, const uint8_t* chosen) {
    std::memcpy(mask + offset, chosen, segment.count);
  });
}

void nm_apply(Scores scores, int n, int m, void* out, int threads) {
  const int bytes = scores.dtype == Dtype::float32 ? 4 : 2;
  advise_large_pages(out, scores.rows * scores.columns * bytes);
  each_mask(scores, !scores.norm, n, m, threads, [=](const Segment& segment, int64_t offset, uint8_t* mask) {
    complement(mask, segment.count);
    copy_coded(segment.values, bytes, mask, 1, segment.count, static_cast<char*>(out) + offset * bytes);
  });
}

}  // namespace pruneengine::cpu
