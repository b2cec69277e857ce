// The kept rows of a matrix. Large results bypass the caches: a plain store would first read the line that it replaces.
#pragma once

#include <algorithm>
#include <cstring>

#include "../ops.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define PRUNE_STREAM 1
#include <immintrin.h>
#endif

namespace pruneengine::cpu {

#ifdef PRUNE_STREAM

inline bool can_stream() { return __builtin_cpu_supports("avx2"); }

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

// Streamed stores are ordered with nothing else.
inline void end_stream() { _mm_sfence(); }

#else

inline bool can_stream() { return false; }
inline void stream_copy(char* to, const char* from, size_t bytes) { std::memcpy(to, from, bytes); }
inline void end_stream() {}

#endif

constexpr int64_t kStreamBytes = int64_t{8} << 20;  // a result that no second-level cache holds until it is used

class RowGather {
 public:
  explicit RowGather(const Gather& part)
      : part_(part),
        bytes_(part.other * part.element_bytes),
        streams_(part.kept * bytes_ >= kStreamBytes && can_stream()) {}

  void rows(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      char* to = static_cast<char*>(part_.out) + i * part_.out_stride * part_.element_bytes;
      const char* from = static_cast<const char*>(part_.data) + part_.index[i] * part_.stride * part_.element_bytes;
      if (streams_) {
        stream_copy(to, from, bytes_);
      } else {
        std::memcpy(to, from, bytes_);
      }
    }
    if (streams_) end_stream();
  }

 private:
  Gather part_;
  int64_t bytes_;
  bool streams_;
};

}  // namespace pruneengine::cpu
