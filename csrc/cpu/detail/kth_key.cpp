#include "kth_key.h"

#include <algorithm>

#include "numeric.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kChunk = 1 << 14;  // keys whose matches a 16-bit counter can hold
constexpr int32_t kSmallest = INT16_MIN, kLargest = INT16_MAX;

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

}  // namespace

KthKey kth_key(const int16_t* keys, int64_t count, int64_t k, int16_t guess, int32_t step) {
  int32_t low = kSmallest, high = kLargest, probe = guess;
  int64_t below = 0, up_to = count;
  bool halve = false;
  while (low < high) {
    const int64_t found = count_up_to(keys, count, static_cast<int16_t>(probe));
    const bool enough = found >= k;
    if (enough) {
      high = probe;
      up_to = found;
    } else {
      low = probe + 1;
      below = found;
    }
    const bool bracketed = low > kSmallest && high < kLargest;
    if (bracketed) {
      // By turns where the k-th would lie if keys were spread evenly, and halfway, which bounds the search.
      const int64_t even = (k - below) * (high - low) / (up_to - below);
      probe = halve ? low + (high - low) / 2 : std::min<int64_t>(high - 1, low + even);
      halve = !halve;
    } else {
      probe = enough ? std::max(low, probe - step) : std::min(high - 1, probe + step);
      step *= 2;
    }
  }
  return {static_cast<int16_t>(low), below, up_to};
}

}  // namespace pruneengine::cpu
