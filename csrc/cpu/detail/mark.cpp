#include "mark.h"

#include <algorithm>

#include "numeric.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kStep = 64;

PRUNE_CLONES void mark_below(const int16_t* keys, int64_t count, int16_t bound, uint8_t* mask) {
  for (int64_t i = 0; i < count; ++i) mask[i] = keys[i] < bound;
}

// Few keys are equal: eight comparisons that all failed are passed over as one word.
PRUNE_CLONES int64_t equal_columns(const int16_t* keys, int64_t count, int16_t key, int32_t* columns) {
  int64_t found = 0, begin = 0;
  for (; begin + kStep <= count; begin += kStep) {
    uint8_t equal[kStep];
    for (int64_t i = 0; i < kStep; ++i) equal[i] = keys[begin + i] == key;
    for (int64_t i = 0; i < kStep; i += 8) {
      uint64_t word;
      std::memcpy(&word, equal + i, sizeof word);
      for (; word; word &= word - 1) columns[found++] = static_cast<int32_t>(begin + i + __builtin_ctzll(word) / 8);
    }
  }
  for (int64_t i = begin; i < count; ++i) {
    columns[found] = static_cast<int32_t>(i);
    found += keys[i] == key;
  }
  return found;
}

}  // namespace

void find_ties(const Segment& segment, bool has_lower_half, const int16_t* keys, int16_t upper, Ties& ties) {
  ties.count = equal_columns(keys, segment.count, upper, ties.columns.data());
  if (!has_lower_half) return;
  for (int64_t i = 0; i < ties.count; ++i) ties.lower[i] = lower_key(segment, ties.columns[i]);
}

int64_t count_equal(const Ties& ties, Border border) {
  return std::count(ties.lower.begin(), ties.lower.begin() + ties.count, border.lower);
}

int64_t mark(const int16_t* keys, int64_t count, const Ties& ties, Border border, int64_t wanted, uint8_t* mask) {
  mark_below(keys, count, border.upper, mask);
  int64_t left = wanted;
  for (int64_t i = 0; i < ties.count; ++i) {
    const bool equal = ties.lower[i] == border.lower && left > 0;
    mask[ties.columns[i]] = equal || ties.lower[i] < border.lower;
    left -= equal;
  }
  return wanted - left;
}

void pack_bits(const uint8_t* mask, int64_t count, uint8_t* bits) {
  // Byte i of a word, 0 or 1, times 2^(56 - 7 i) is bit i of the highest byte; no two products meet.
  constexpr uint64_t kGather = 0x0102040810204080;
  uint64_t word;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    std::memcpy(&word, mask + i, sizeof word);
    bits[i / 8] = static_cast<uint8_t>(word * kGather >> 56);
  }
  if (i == count) return;
  word = 0;
  std::memcpy(&word, mask + i, count - i);
  bits[i / 8] = static_cast<uint8_t>(word * kGather >> 56);
}

}  // namespace pruneengine::cpu
