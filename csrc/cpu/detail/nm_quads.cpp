#include "nm_quads.h"

#include "numeric.h"

namespace pruneengine::cpu {
namespace {

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define PRUNE_QUADS
#endif
#endif

#ifdef PRUNE_QUADS
constexpr int64_t kGroups = 8, kStep = 4 * kGroups;
constexpr int64_t kAhead = 2048;  // scores; the hardware's own prefetch ends with each page
// Where the vectors hold the groups of a step: the two halves of a 32-byte register are shuffled alike.
constexpr int kOrder[kGroups] = {0, 1, 4, 5, 2, 3, 6, 7};

typedef int32_t Keys __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));
typedef int64_t Pairs __attribute__((vector_size(32)));

template <class V>
PRUNE_INLINE V load(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

PRUNE_INLINE Keys key_of(Keys widened, const float* norm) {
  return reinterpret_cast<Keys>(reinterpret_cast<Floats>(widened) * load<Floats>(norm)) & 0x7fffffff;
}

// A word of a group holds two neighbours. Of equal keys the one in the lower column counts as the smaller, so a member
// starts with one rank for each before it, which a larger one before it takes back.
PRUNE_CLONES int64_t mark(const Bfloat* values, const float* norm, int64_t count, int dropped, uint8_t* mask) {
  const Keys wanted = Keys{} + dropped;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    __builtin_prefetch(values + i + kAhead);
    __builtin_prefetch(values + i + kAhead + kStep / 2);
    const Keys a = load<Keys>(values + i), b = load<Keys>(values + i + kStep / 2);
    const Keys low = __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
    const Keys high = __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
    const Keys upper = Keys{} + static_cast<int32_t>(0xffff0000u);
    const Keys k0 = key_of(low << 16, norm + i), k1 = key_of(low & upper, norm + i + kGroups);
    const Keys k2 = key_of(high << 16, norm + i + 2 * kGroups), k3 = key_of(high & upper, norm + i + 3 * kGroups);
    const Keys g01 = k0 > k1, g02 = k0 > k2, g03 = k0 > k3, g12 = k1 > k2, g13 = k1 > k3, g23 = k2 > k3;
    const Keys m0 = -(g01 + g02 + g03) < wanted;
    const Keys m1 = g01 - (g12 + g13) + 1 < wanted;
    const Keys m2 = g02 + g12 - g23 + 2 < wanted;
    const Keys m3 = g03 + g13 + g23 + 3 < wanted;
    const Keys bytes = (m0 & 0x1) | (m1 & 0x100) | (m2 & 0x10000) | (m3 & 0x1000000);
    const Pairs pairs = reinterpret_cast<Pairs>(bytes);
    const Pairs chosen = __builtin_shufflevector(pairs, pairs, 0, 2, 1, 3);
    std::memcpy(mask + i, &chosen, sizeof chosen);
  }
  return i;
}
#endif

}  // namespace

QuadNorm::QuadNorm(const Scores& scores) : first_(scores.norm) {
#ifdef PRUNE_QUADS
  if (scores.norm == nullptr || scores.dtype != Dtype::bfloat16) return;
  ordered_.resize(scores.columns / kStep * kStep);
  for (int64_t step = 0; step < static_cast<int64_t>(ordered_.size()); step += kStep) {
    for (int member = 0; member < 4; ++member) {
      for (int lane = 0; lane < kGroups; ++lane) {
        ordered_[step + member * kGroups + lane] = scores.norm[step + 4 * kOrder[lane] + member];
      }
    }
  }
#endif
}

int64_t mark_quads(const Segment& segment, const QuadNorm& norm, int dropped, uint8_t* mask) {
#ifdef PRUNE_QUADS
  if (norm.ordered_.empty()) return 0;
  const float* ordered = norm.ordered_.data() + (segment.norm - norm.first_);
  return mark(static_cast<const Bfloat*>(segment.values), ordered, segment.count, dropped, mask);
#else
  return 0;
#endif
}

}  // namespace pruneengine::cpu
