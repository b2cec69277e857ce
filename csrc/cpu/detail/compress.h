// Kept columns moved together, eight at a time, by one shuffle: a table has it for the eight bits that say which stay.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#define PRUNE_COMPRESS 1
#include <immintrin.h>
#endif

namespace pruneengine::cpu {

constexpr int64_t kChunk = 8;  // columns

#ifdef PRUNE_COMPRESS

#define PRUNE_AVX2 __attribute__((target("avx2,popcnt")))

template <class T>
constexpr bool can_compress = sizeof(T) == 2 || sizeof(T) == 4;

inline bool has_compress() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"); }

// The shuffle that brings the columns of a mask to the front: positions of bytes for pshufb, of words for vpermd.
template <class T>
struct Shuffles;

template <>
struct Shuffles<uint16_t> {
  alignas(16) uint8_t at[256][16] = {};

  Shuffles() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int bit = 0, n = 0; bit < 8; ++bit) {
        if (mask >> bit & 1) at[mask][n++] = 2 * bit, at[mask][n++] = 2 * bit + 1;
      }
    }
  }
};

template <>
struct Shuffles<uint32_t> {
  alignas(32) uint32_t at[256][8] = {};

  Shuffles() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int bit = 0, n = 0; bit < 8; ++bit) {
        if (mask >> bit & 1) at[mask][n++] = bit;
      }
    }
  }
};

PRUNE_AVX2 inline void shuffle(const uint16_t* from, uint16_t* to, const uint8_t* positions) {
  const __m128i chunk = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m128i kept = _mm_shuffle_epi8(chunk, _mm_load_si128(reinterpret_cast<const __m128i*>(positions)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), kept);
}

PRUNE_AVX2 inline void shuffle(const uint32_t* from, uint32_t* to, const uint32_t* positions) {
  const __m256i chunk = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(positions));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(chunk, order));
}

// The kept columns of `chunks` chunks of kRows rows. Every store is of a whole chunk: what it writes past its kept
// columns the next one overwrites, so a chunk's width from where the last one starts must belong to the row.
template <int kRows, class T>
PRUNE_AVX2 void compress(const T* from, int64_t stride, const uint8_t* masks, int64_t chunks, T* to,
                         int64_t to_stride) {
  static const Shuffles<T> shuffles;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const auto* positions = shuffles.at[masks[chunk]];
    for (int row = 0; row < kRows; ++row) shuffle(from + row * stride, to + row * to_stride, positions);
    from += kChunk;
    to += __builtin_popcount(masks[chunk]);
  }
}

#else

template <class T>
constexpr bool can_compress = false;

inline bool has_compress() { return false; }

template <int kRows, class T>
void compress(const T*, int64_t, const uint8_t*, int64_t, T*, int64_t) {}

#endif

}  // namespace pruneengine::cpu
