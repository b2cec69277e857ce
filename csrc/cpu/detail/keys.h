// Scores as integers that order like them, so that one code selects in every dtype, with and without a norm.
//
// Sign-magnitude bits read as two's complement order like the floats they stand for, and -0.0 meets 0.0. A score of a
// 16-bit dtype is a key of 16 bits; a float32 score, and with it every product with a norm, is one of 32 bits, which
// selections settle in two halves: the upper one of all scores, the lower one of the few that share the upper.
#pragma once

#include "../../ops.h"

namespace pruneengine::cpu {

struct Segment {  // consecutive columns of one row
  const void* values;
  const float* norm;  // of these columns, may be null
  int64_t count;
  Dtype dtype;
};

inline Segment segment_of(const Scores& scores, int64_t row, int64_t begin, int64_t count) {
  const int64_t bytes = scores.dtype == Dtype::float32 ? 4 : 2;
  const char* values = static_cast<const char*>(scores.values.data) + (row * scores.values.stride + begin) * bytes;
  return {values, scores.norm ? scores.norm + begin : nullptr, count, scores.dtype};
}

inline bool has_lower_half(const Scores& scores) { return scores.norm || scores.dtype == Dtype::float32; }

// The upper halves of 32-bit keys, or 16-bit keys as they are: int16 [count].
void upper_keys(const Segment& segment, int16_t* keys);

// Keys of either width: int32 [count].
void whole_keys(const Segment& segment, int32_t* keys);

// The lower half of one 32-bit key, shifted to order as an int16.
int16_t lower_key(const Segment& segment, int64_t column);

// The score that the halves of a key stand for; `lower` is ignored where keys have 16 bits.
float score_of(const Scores& scores, int16_t upper, int16_t lower);

}  // namespace pruneengine::cpu
