// |x|^p in float32, for any p as 2^(p * log2 |x|), branch-free so that it vectorises; relative error below 1e-5 for
// p <= 4. The powers 1 and 2 are exact or rounded once, and cheap.
#pragma once

#include "numeric.h"

namespace pruneengine::cpu {

// log2 of a positive normal float: exponent plus 2/ln2 * atanh((m-1)/(m+1)), m in [sqrt(1/2), sqrt(2)).
PRUNE_INLINE float log2_normal(float value) {
  const uint32_t bits = as_bits(value) - 0x3f3504f3u;  // distance from sqrt(1/2), so that m is centred on 1
  const float exponent = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float m = as_float((bits & 0x007fffffu) + 0x3f3504f3u);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float t = s * s;
  const float series = 2.885390082f + t * (0.961796694f + t * (0.577078016f + t * (0.412198583f + t * 0.320598898f)));
  return exponent + s * series;
}

// 2^y: zero below 2^-125, infinity from 2^128.
PRUNE_INLINE float exp2_clamped(float y) {
  const float inside = choose(y < -125.0f, -125.0f, choose(y > 128.0f, 128.0f, y));
  const float shifted = inside + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
  const float whole = shifted - 12582912.0f;
  const float f = inside - whole;
  const float fraction =
      1.0f +
      f * (0.693147181f +
           f * (0.240226507f +
                f * (0.0555041087f + f * (0.00961812911f + f * (0.00133335581f + f * 0.000154035304f)))));
  // Half the scale first: 2^128 itself has no float, 2^128 * fraction below 1 does.
  const int32_t half_scale = (static_cast<int32_t>(whole) + 126) << 23;
  const float result = fraction * as_float(static_cast<uint32_t>(half_scale)) * 2.0f;
  return choose(y < -125.0f, 0.0f, result);
}

// log2 of a positive finite float; something finite of zero.
PRUNE_INLINE float log2_positive(float value) {
  const bool tiny = value < 1.17549435e-38f;
  const float scaled = choose(tiny, value * 16777216.0f, value);
  return log2_normal(scaled) - choose(tiny, 24.0f, 0.0f);
}

PRUNE_INLINE float power_of(float value, float power) {
  const float result = choose(value == 0.0f, 0.0f, exp2_clamped(power * log2_positive(value)));
  return choose(value <= 3.40282347e+38f, result, value);  // infinity and NaN stay what they are
}

enum class Power { one, two, any };

inline Power kind_of(double power) { return power == 1.0 ? Power::one : power == 2.0 ? Power::two : Power::any; }

template <Power kPower>
PRUNE_INLINE float raised(float value, float power) {
  if (kPower == Power::two) return value * value;
  const float a = magnitude(value);
  return kPower == Power::one ? a : power_of(a, power);
}

}  // namespace pruneengine::cpu
