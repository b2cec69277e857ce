// How the sums read rows. A loop over bfloat16 alone takes a word of two neighbours a step: a shift and a mask widen
// them, where widening one by one needs a shuffle too. Its running sums lie in two planes, even columns and odd, and
// are put back in order once a block. Everything else is one plane.
#pragma once

#include <type_traits>

#include "numeric.h"

namespace pruneengine::cpu {

template <class... T>
constexpr int planes_of = (std::is_same_v<T, Bfloat> && ...) ? 2 : 1;

// Element `i` of plane `which`; words are little-endian.
template <int kPlanes, class T>
PRUNE_INLINE float plane(const T* row, int64_t i, int which) {
  if constexpr (kPlanes == 1) {
    return widen(row[i]);
  } else {
    uint32_t word;
    std::memcpy(&word, row + 2 * i, sizeof word);
    return as_float(which == 0 ? word << 16 : word & 0xffff0000u);
  }
}

// A value for each of up to kColumns columns. The padding keeps planes from sharing the sets of the first-level cache.
template <class Value, int kPlanes, int64_t kColumns>
struct Planes {
  Value at[kPlanes][kColumns / kPlanes + 16];

  PRUNE_INLINE void clear(int64_t steps) {
    for (int p = 0; p < kPlanes; ++p) std::memset(at[p], 0, steps * sizeof(Value));
  }
  PRUNE_INLINE void take(const Value* columns, int64_t steps) {
    for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 2
      for (int p = 0; p < kPlanes; ++p) at[p][i] = columns[i * kPlanes + p];
    }
  }
  PRUNE_INLINE void put(Value* columns, int64_t steps) const {
    for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 2
      for (int p = 0; p < kPlanes; ++p) columns[i * kPlanes + p] = at[p][i];
    }
  }
};

}  // namespace pruneengine::cpu
