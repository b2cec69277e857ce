// The weight at any sparsity from one byte each, at the speed of memory.
#include <algorithm>
#include <cstring>

#include "detail/masked.h"
#include "detail/numeric.h"
#include "detail/parallel.h"
#include "detail/stream.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kTaskBytes = 1 << 18;
constexpr int64_t kChunkBytes = 1 << 12;  // of an output on its way to memory
constexpr int64_t kStreamBytes = int64_t{1} << 24;  // from here on an output is not in a cache when it is read

#define PRUNE_COPY_CODED(T)                                                                                     \
  PRUNE_CLONES void coded(const T* weight, const uint8_t* codes, uint8_t level, int64_t count, T* out) {        \
    for (int64_t i = 0; i < count; ++i) out[i] = weight[i] & static_cast<T>(-static_cast<T>(codes[i] >= level)); \
  }
PRUNE_COPY_CODED(uint8_t)
PRUNE_COPY_CODED(uint16_t)
PRUNE_COPY_CODED(uint32_t)
PRUNE_COPY_CODED(uint64_t)
#undef PRUNE_COPY_CODED

template <class T>
void coded(const void* weight, const uint8_t* codes, uint8_t level, int64_t count, void* out) {
  coded(static_cast<const T*>(weight), codes, level, count, static_cast<T*>(out));
}

// Each chunk is made in the first-level cache, then written past it.
void stream_coded(const char* weight, int element_bytes, const uint8_t* codes, uint8_t level, int64_t count,
                  char* out) {
  alignas(64) char chunk[kChunkBytes];
  const int64_t step = kChunkBytes / element_bytes;
  for (int64_t begin = 0; begin < count; begin += step) {
    const int64_t part = std::min(step, count - begin), offset = begin * element_bytes;
    copy_coded(weight + offset, element_bytes, codes + begin, level, part, chunk);
    stream_copy(out + offset, chunk, part * element_bytes);
  }
}

}  // namespace

void copy_coded(const void* weight, int element_bytes, const uint8_t* codes, uint8_t level, int64_t count, void* out) {
  switch (element_bytes) {
    case 1: return coded<uint8_t>(weight, codes, level, count, out);
    case 2: return coded<uint16_t>(weight, codes, level, count, out);
    case 4: return coded<uint32_t>(weight, codes, level, count, out);
    case 8: return coded<uint64_t>(weight, codes, level, count, out);
  }
}

void masked_copy(Matrix weight, int element_bytes, int64_t rows, int64_t columns, const uint8_t* codes,
                 int64_t codes_stride, int level, void* out, int64_t out_stride, int threads) {
  const int64_t row_bytes = columns * element_bytes, bytes = rows * row_bytes;
  const bool stream = out != weight.data && bytes >= kStreamBytes && can_stream();
  const Blocks by_row{rows, std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(1, row_bytes))};
  parallel_for(by_row.count(), useful_threads(bytes, threads), [&](int64_t block, int) {
    for (int64_t row = by_row.begin(block); row < by_row.begin(block) + by_row.length(block); ++row) {
      const char* from = static_cast<const char*>(weight.data) + row * weight.stride * element_bytes;
      char* to = static_cast<char*>(out) + row * out_stride * element_bytes;
      const uint8_t* row_codes = codes + row * codes_stride;
      if (level > UINT8_MAX) {
        std::memset(to, 0, row_bytes);
      } else if (stream) {
        stream_coded(from, element_bytes, row_codes, static_cast<uint8_t>(level), columns, to);
      } else {
        copy_coded(from, element_bytes, row_codes, static_cast<uint8_t>(level), columns, to);
      }
    }
    stream_fence();
  });
}

}  // namespace pruneengine::cpu
