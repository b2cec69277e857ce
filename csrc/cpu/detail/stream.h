// Copies that bypass the caches: a plain store would first read the line that it replaces.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define PRUNE_STREAM 1
#include <immintrin.h>
#endif

namespace pruneengine::cpu {

#ifdef PRUNE_STREAM

inline bool can_stream() { return __builtin_cpu_supports("avx2"); }

// What it wrote is visible to other threads after stream_fence().
__attribute__((target("avx2"))) inline void stream_copy(char* to, const char* from, size_t bytes) {
  const size_t head = std::min(bytes, size_t(-reinterpret_cast<uintptr_t>(to) % 64));
  std::memcpy(to, from, head);
  size_t i = head;
  for (; i + 64 <= bytes; i += 64) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i + 32), high);
  }
  std::memcpy(to + i, from + i, bytes - i);
}

inline void stream_fence() { _mm_sfence(); }

#else

inline bool can_stream() { return false; }
inline void stream_copy(char* to, const char* from, size_t bytes) { std::memcpy(to, from, bytes); }
inline void stream_fence() {}

#endif

}  // namespace pruneengine::cpu
