// Stores that bypass the caches: an output larger than they are is not read before it is written.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace pruneengine::cpu {

constexpr int64_t kStreamBytes = int64_t{1} << 24;  // from this size on, an output is not in a cache when it is read

// A copy for large outputs; what it wrote is visible to other threads after stream_fence().
inline void stream_copy(void* to, const void* from, int64_t bytes) {
#ifdef __SSE2__
  char* target = static_cast<char*>(to);
  const char* source = static_cast<const char*>(from);
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(to) & 15);
  std::memcpy(target, source, head);
  int64_t i = head;
  for (; i + 16 <= bytes; i += 16) {
    const __m128i word = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + i), word);
  }
  std::memcpy(target + i, source + i, bytes - i);
#else
  std::memcpy(to, from, bytes);
#endif
}

inline void stream_fence() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

}  // namespace pruneengine::cpu
