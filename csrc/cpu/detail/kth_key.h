// The k-th smallest of many 16-bit keys: its range is halved, and each half is counted in one vectorised pass.
#pragma once

#include <cstdint>

namespace pruneengine::cpu {

struct KthKey {
  int16_t key;
  int64_t below;  // how many keys are smaller
  int64_t up_to;  // how many are smaller or equal
};

// 1 <= k <= count. The search opens a bracket around `guess`, at first `step` away; neither changes the result.
KthKey kth_key(const int16_t* keys, int64_t count, int64_t k, int16_t guess, int32_t step);

}  // namespace pruneengine::cpu
