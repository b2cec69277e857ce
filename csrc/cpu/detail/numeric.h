// The three input formats, widened to float32 with plain integer arithmetic that every compiler vectorises.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../ops.h"

// Small bodies are written once and inlined into every instruction-set clone that calls them.
#define PRUNE_INLINE inline __attribute__((always_inline))

// ifunc clones need glibc; elsewhere the one portable version is built.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define PRUNE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PRUNE_CLONES
#endif

namespace pruneengine::cpu {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

PRUNE_INLINE float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

PRUNE_INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

PRUNE_INLINE float widen(float value) { return value; }

PRUNE_INLINE float widen(Bfloat value) { return as_float(static_cast<uint32_t>(value.bits) << 16); }

// A choice by mask: written as `?:` on bit patterns it becomes a branch, and the loop around it stays scalar.
PRUNE_INLINE uint32_t choose(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = -static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

PRUNE_INLINE float choose(bool condition, float yes, float no) {
  return as_float(choose(condition, as_bits(yes), as_bits(no)));
}

// Compilers turn casts of _Float16 into one scalar conversion a value, so the exponent is rebiased by hand. Subnormal
// halves go through a subtraction of normal numbers: exact, and safe where subnormals are flushed or slow.
PRUNE_INLINE float widen(Half value) {
  const int32_t rebias = 112 << 23;
  const int32_t magnitude = (value.bits & 0x7fff) << 13;
  const int32_t infinite = magnitude >= (0x7c00 << 13);
  const uint32_t normal = magnitude + rebias + (-infinite & rebias);
  const float small = as_float(magnitude + rebias + (1 << 23)) - as_float(rebias + (1 << 23));
  const uint32_t bits = choose(magnitude < (1 << 23), as_bits(small), normal);
  return as_float(bits | static_cast<uint32_t>(value.bits & 0x8000) << 16);
}

PRUNE_INLINE float magnitude(float value) { return as_float(as_bits(value) & 0x7fffffffu); }

}  // namespace pruneengine::cpu
