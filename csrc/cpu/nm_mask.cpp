// n:m sparsity: which m - n of every m consecutive scores are the smallest, and the weight without them.
//
// The rank of a score in its group is the number of scores that are smaller, or equal and of a lower column. Groups of
// 4 and 8 lie side by side in vectors, which are compared with themselves rotated within the groups.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "detail/keys.h"
#include "detail/masked.h"
#include "detail/nm_quads.h"
#include "detail/numeric.h"
#include "detail/pages.h"
#include "detail/parallel.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kChunk = 1 << 11;  // keys that stay in the first-level cache
constexpr int64_t kTaskScores = 1 << 17;
constexpr int kLargestGroup = 32;

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector) && __has_builtin(__builtin_convertvector)
#define PRUNE_VECTORS
#endif
#endif

#ifdef PRUNE_VECTORS
typedef int16_t Narrow __attribute__((vector_size(32)));
typedef int32_t Wide __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));

constexpr int64_t kStep = 16;     // keys at a time, whole groups of either size
constexpr int64_t kAhead = 2048;  // scores; the hardware's own prefetch ends with each page

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

template <class V>
PRUNE_INLINE V load_keys(const void* scores, V kept_bits) {
  V bits;
  std::memcpy(&bits, scores, sizeof bits);
  bits &= kept_bits;
  const V sign = bits >> (8 * sizeof bits[0] - 1);
  return ((bits & std::numeric_limits<std::decay_t<decltype(bits[0])>>::max()) ^ sign) - sign;
}

template <int kGroup>
PRUNE_INLINE Narrow among_smallest(const int16_t* scores, int16_t kept_bits, int dropped) {
  const Narrow keys = load_keys(scores, Narrow{} + kept_bits);
  return ranks(keys, std::make_index_sequence<kGroup - 1>()) < static_cast<int16_t>(dropped);
}

template <int kGroup>
PRUNE_INLINE Narrow among_smallest(const int32_t* scores, int32_t kept_bits, int dropped) {
  const Wide first = load_keys(scores, Wide{} + kept_bits), second = load_keys(scores + kStep / 2, Wide{} + kept_bits);
  const Wide chosen[] = {ranks(first, std::make_index_sequence<kGroup - 1>()) < dropped,
                         ranks(second, std::make_index_sequence<kGroup - 1>()) < dropped};
  return __builtin_shufflevector(reinterpret_cast<Narrow>(chosen[0]), reinterpret_cast<Narrow>(chosen[1]), 0, 2, 4, 6,
                                 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}

// Scores are bits of floats; without their sign bit in `kept_bits`, of magnitudes. Returns how many it dealt with.
#define PRUNE_GROUPS(NAME, BITS, GROUP)                                                                             \
  PRUNE_CLONES int64_t NAME(const BITS* scores, int64_t count, BITS kept_bits, int dropped, uint8_t* mask) {        \
    int64_t i = 0;                                                                                                  \
    for (; i + kStep <= count; i += kStep) {                                                                        \
      __builtin_prefetch(scores + i + kAhead);                                                                      \
      const Bytes chosen = -__builtin_convertvector(among_smallest<GROUP>(scores + i, kept_bits, dropped), Bytes);  \
      std::memcpy(mask + i, &chosen, sizeof chosen);                                                                \
    }                                                                                                               \
    return i;                                                                                                       \
  }
PRUNE_GROUPS(mark_fours, int16_t, 4)
PRUNE_GROUPS(mark_fours, int32_t, 4)
PRUNE_GROUPS(mark_eights, int16_t, 8)
PRUNE_GROUPS(mark_eights, int32_t, 8)
#undef PRUNE_GROUPS

template <class Bits>
int64_t mark_vectors(const Bits* scores, int64_t count, Bits kept_bits, int m, int dropped, uint8_t* mask) {
  return m == 4   ? mark_fours(scores, count, kept_bits, dropped, mask)
         : m == 8 ? mark_eights(scores, count, kept_bits, dropped, mask)
                  : 0;
}
#else
template <class Bits>
int64_t mark_vectors(const Bits*, int64_t, Bits, int, int, uint8_t*) {
  return 0;
}
#endif

// Each key meets kLargestGroup lanes, of which those past its group are of no account.
#define PRUNE_ANY_GROUPS(KEY)                                                                                     \
  PRUNE_CLONES void mark_groups(const KEY* keys, int64_t count, int m, int dropped, uint8_t* mask) {              \
    for (int64_t begin = 0; begin < count; begin += m) {                                                          \
      const KEY* group = keys + begin;                                                                            \
      KEY rank[kLargestGroup] = {};                                                                               \
      for (KEY j = 0; j < m; ++j) {                                                                               \
        for (KEY i = 0; i < kLargestGroup; ++i) rank[i] += group[i] > static_cast<KEY>(group[j] - (i > j));       \
      }                                                                                                           \
      for (int i = 0; i < m; ++i) mask[begin + i] = rank[i] < dropped;                                            \
    }                                                                                                             \
  }
PRUNE_ANY_GROUPS(int16_t)
PRUNE_ANY_GROUPS(int32_t)
#undef PRUNE_ANY_GROUPS

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

struct Pattern {
  int dropped;  // of each group
  int m;
  bool magnitudes;
  const QuadNorm* quads;  // null where there are none
};

template <class Key>
struct Scratch {
  alignas(64) Key keys[kChunk + kLargestGroup] = {};
  alignas(64) uint8_t mask[kChunk];
};

// The mask of whole groups: vectors of them straight from the scores where the scores are plain or come in quads.
template <class Key>
void mark(const Segment& segment, const Pattern& pattern, Key* keys, uint8_t* mask) {
  const Key kept_bits = pattern.magnitudes ? std::numeric_limits<Key>::max() : static_cast<Key>(-1);
  const auto [dropped, m, magnitudes, quads] = pattern;
  const int64_t count = segment.count;
  const int64_t in_quads = quads ? mark_quads(segment, *quads, dropped, mask) : 0;
  if (in_quads == count) return;
  if (segment.norm) make_keys(segment, keys);
  const Key* scores = segment.norm ? keys : static_cast<const Key*>(segment.values);
  const int64_t done =
      in_quads + mark_vectors(scores + in_quads, count - in_quads, kept_bits, m, dropped, mask + in_quads);
  if (done == count) return;
  if (!segment.norm) make_keys(segment, keys);
  if (magnitudes) to_magnitudes(keys, count);
  mark_groups(keys + done, count - done, m, dropped, mask + done);
}

// Calls body(segment, offset, scratch) for chunks of whole groups, `offset` scores into the matrix, in any order.
template <class Key, class Body>
void each_chunk(const Scores& scores, int m, int threads, Body body) {
  const Blocks by_row{scores.rows, std::max<int64_t>(1, kTaskScores / std::max<int64_t>(1, scores.columns))};
  const Blocks by_chunk{scores.columns, kChunk / m * m};
  threads = useful_threads(scores.rows * scores.columns * static_cast<int64_t>(sizeof(Key)), threads);
  parallel_for(by_row.count(), threads, [&](int64_t block, int) {
    Scratch<Key> scratch;
    for (int64_t row = by_row.begin(block); row < by_row.begin(block) + by_row.length(block); ++row) {
      for (int64_t chunk = 0; chunk < by_chunk.count(); ++chunk) {
        const Segment segment = segment_of(scores, row, by_chunk.begin(chunk), by_chunk.length(chunk));
        body(segment, row * scores.columns + by_chunk.begin(chunk), scratch);
      }
    }
  });
}

template <class Key>
void run_mask(const Scores& scores, const Pattern& pattern, uint8_t* mask, int threads) {
  each_chunk<Key>(scores, pattern.m, threads, [=](const Segment& segment, int64_t offset, Scratch<Key>& scratch) {
    mark(segment, pattern, scratch.keys, mask + offset);
  });
}

template <class Key>
void run_apply(const Scores& scores, const Pattern& pattern, char* out, int threads) {
  const int bytes = scores.dtype == Dtype::float32 ? 4 : 2;
  each_chunk<Key>(scores, pattern.m, threads, [=](const Segment& segment, int64_t offset, Scratch<Key>& scratch) {
    mark(segment, pattern, scratch.keys, scratch.mask);
    complement(scratch.mask, segment.count);
    copy_coded(segment.values, bytes, scratch.mask, 1, segment.count, out + offset * bytes);
  });
}

}  // namespace

void nm_mask(Scores scores, int n, int m, bool* mask, int threads) {
  const auto run = has_lower_half(scores) ? run_mask<int32_t> : run_mask<int16_t>;
  const QuadNorm quads(scores);
  advise_large_pages(mask, scores.rows * scores.columns);
  run(scores, {m - n, m, false, m == 4 ? &quads : nullptr}, reinterpret_cast<uint8_t*>(mask), threads);
}

void nm_apply(Scores scores, int n, int m, void* out, int threads) {
  const auto run = has_lower_half(scores) ? run_apply<int32_t> : run_apply<int16_t>;
  const QuadNorm quads(scores);
  advise_large_pages(out, scores.rows * scores.columns * (scores.dtype == Dtype::float32 ? 4 : 2));
  run(scores, {m - n, m, !scores.norm, m == 4 ? &quads : nullptr}, static_cast<char*>(out), threads);
}

}  // namespace pruneengine::cpu
