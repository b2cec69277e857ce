// Scores as unsigned 32-bit keys of the same order. A key of fewer bits is left-aligned, so that passes from the top
// are the same for all.
#pragma once

#include <cuda_fp16.h>

#include "common.cuh"

namespace pruneengine::cuda {

constexpr int kCell = 8;  // columns a thread takes at once: 16 bytes of a 16-bit type, one byte of a packed mask

template <class T>
struct alignas(16) Cell {
  T at[kCell];
};

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(Half value) { return __half2float(__ushort_as_half(value.bits)); }
__device__ __forceinline__ float widen(Bfloat value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

// The values themselves: T is uint32_t for float32, uint16_t for the 16-bit formats, whose bits order alike.
template <class T>
struct Plain {
  using Value = T;
  using Stored = T;
  static constexpr int kBits = 8 * sizeof(T);
  static constexpr int kUnused = 32 - kBits;
  static constexpr bool kNormed = false;
  static constexpr int kBatch = sizeof(T) == 2 ? 3 : 2;  // cells a thread loads at once, within 64 registers

  // Sign-magnitude bits read as two's complement order like the floats they stand for, and -0.0 meets 0.0.
  static __device__ __forceinline__ uint32_t key(T value, float) {
    const uint32_t bits = static_cast<uint32_t>(value) << kUnused;
    const uint32_t sign = 0u - (bits >> 31);
    return (((bits & 0x7fffffffu) ^ sign) - sign) ^ 0x80000000u;
  }

  static __device__ __forceinline__ float score(uint32_t key, Dtype dtype) {
    const uint32_t signed_key = key ^ 0x80000000u;
    const uint32_t bits = signed_key >> 31 ? 0x80000000u | (0u - signed_key) : signed_key;
    if (dtype != Dtype::float16) return __uint_as_float(bits);
    return widen(Half{static_cast<uint16_t>(bits >> 16)});
  }
};

// Magnitudes times a norm, never negative: the sign's bit is free, and the first digit holds one more of the mantissa.
template <class T>
struct Normed {
  using Value = T;
  using Stored = uint32_t;
  static constexpr int kBits = 32;
  static constexpr int kUnused = 0;
  static constexpr bool kNormed = true;
  static constexpr int kBatch = 2;

  static __device__ __forceinline__ uint32_t key(T value, float norm) {
    return __float_as_uint(fabsf(widen(value)) * norm) << 1;
  }

  static __device__ __forceinline__ float score(uint32_t key, Dtype) { return __uint_as_float(key >> 1); }
};

// Calls `launch` with the source of keys for the dtype.
template <class Launch>
void with_source(Dtype dtype, bool normed, Launch launch) {
  switch (dtype) {
    case Dtype::float32: return normed ? launch(Normed<float>()) : launch(Plain<uint32_t>());
    case Dtype::float16: return normed ? launch(Normed<Half>()) : launch(Plain<uint16_t>());
    case Dtype::bfloat16: return normed ? launch(Normed<Bfloat>()) : launch(Plain<uint16_t>());
  }
}

}  // namespace pruneengine::cuda
