#include "keys.h"

#include "numeric.h"

namespace pruneengine::cpu {
namespace {

constexpr int32_t kLowerZero = 0x8000;  // what an unsigned half is shifted by to order as an int16

PRUNE_INLINE int16_t key_of(uint16_t bits) {
  const int16_t score = static_cast<int16_t>(bits), sign = static_cast<int16_t>(score >> 15);
  return static_cast<int16_t>(((score & 0x7fff) ^ sign) - sign);
}

PRUNE_INLINE int32_t key_of(float score) {
  const int32_t bits = static_cast<int32_t>(as_bits(score)), sign = bits >> 31;
  return ((bits & 0x7fffffff) ^ sign) - sign;
}

// The sign goes after the product, so that a norm of -0.0 does not come through.
template <class T>
PRUNE_INLINE int32_t key_of(T value, float norm) {
  return static_cast<int32_t>(as_bits(widen(value) * norm) & 0x7fffffff);
}

PRUNE_INLINE int16_t upper_half(int32_t key) { return static_cast<int16_t>(key >> 16); }
PRUNE_INLINE int16_t lower_half(int32_t key) { return static_cast<int16_t>((key & 0xffff) - kLowerZero); }

PRUNE_CLONES void upper(const uint16_t* values, int64_t count, int16_t* keys) {
  for (int64_t i = 0; i < count; ++i) keys[i] = key_of(values[i]);
}
PRUNE_CLONES void whole(const uint16_t* values, int64_t count, int32_t* keys) {
  for (int64_t i = 0; i < count; ++i) keys[i] = key_of(values[i]);
}
PRUNE_CLONES void upper(const float* values, int64_t count, int16_t* keys) {
  for (int64_t i = 0; i < count; ++i) keys[i] = upper_half(key_of(values[i]));
}
PRUNE_CLONES void whole(const float* values, int64_t count, int32_t* keys) {
  for (int64_t i = 0; i < count; ++i) keys[i] = key_of(values[i]);
}

// Clones are plain functions: the attribute is unreliable on templates.
#define PRUNE_WEIGHTED_KEYS(T)                                                                         \
  PRUNE_CLONES void upper(const T* values, const float* norm, int64_t count, int16_t* keys) {          \
    for (int64_t i = 0; i < count; ++i) keys[i] = upper_half(key_of(values[i], norm[i]));              \
  }                                                                                                    \
  PRUNE_CLONES void whole(const T* values, const float* norm, int64_t count, int32_t* keys) {          \
    for (int64_t i = 0; i < count; ++i) keys[i] = key_of(values[i], norm[i]);                          \
  }
PRUNE_WEIGHTED_KEYS(float)
PRUNE_WEIGHTED_KEYS(Half)
PRUNE_WEIGHTED_KEYS(Bfloat)
#undef PRUNE_WEIGHTED_KEYS

// Calls body(values) or body(values, norm), the values as what their keys are made of.
template <class Body>
PRUNE_INLINE auto with_columns(const Segment& segment, Body body) {
  if (segment.dtype == Dtype::float32) {
    const float* values = static_cast<const float*>(segment.values);
    return segment.norm ? body(values, segment.norm) : body(values);
  }
  if (!segment.norm) return body(static_cast<const uint16_t*>(segment.values));
  if (segment.dtype == Dtype::float16) return body(static_cast<const Half*>(segment.values), segment.norm);
  return body(static_cast<const Bfloat*>(segment.values), segment.norm);
}

}  // namespace

void upper_keys(const Segment& segment, int16_t* keys) {
  with_columns(segment, [&](auto... columns) { upper(columns..., segment.count, keys); });
}

void whole_keys(const Segment& segment, int32_t* keys) {
  with_columns(segment, [&](auto... columns) { whole(columns..., segment.count, keys); });
}

int16_t lower_key(const Segment& segment, int64_t column) {
  return with_columns(segment, [=](auto... columns) { return lower_half(key_of(columns[column]...)); });
}

float score_of(const Scores& scores, int16_t upper, int16_t lower) {
  if (!has_lower_half(scores) && scores.dtype == Dtype::float16) {
    return widen(Half{static_cast<uint16_t>(upper < 0 ? 0x8000 - upper : upper)});
  }
  const int32_t key = upper * 65536 + (has_lower_half(scores) ? lower + kLowerZero : 0);
  return as_float(key < 0 ? 0x80000000u - static_cast<uint32_t>(key) : static_cast<uint32_t>(key));
}

}  // namespace pruneengine::cpu
