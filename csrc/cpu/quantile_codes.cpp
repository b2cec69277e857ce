// The code floor(256 r / C) of each score's rank r in its row, without sorting the row.
//
// Scores are counted in buckets of consecutive keys. All but a few buckets lie within one code; the scores of the
// others, and no more, are sorted. With about as many buckets as scores those are few. Rows are read twice, their keys
// never stored.
#include <algorithm>
#include <tuple>
#include <vector>

#include "keys.h"
#include "numeric.h"
#include "pages.h"
#include "parallel.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kRows = 8;        // rows a task
constexpr int64_t kChunk = 1 << 11;  // keys that stay in the first-level cache
constexpr int64_t kCodes = 256;
constexpr int64_t kMostBuckets = 1 << 20;

PRUNE_CLONES void widen_range(const int32_t* keys, int64_t count, int32_t* smallest, int32_t* largest) {
  int32_t low = *smallest, high = *largest;
  for (int64_t i = 0; i < count; ++i) {
    low = std::min(low, keys[i]);
    high = std::max(high, keys[i]);
  }
  *smallest = low;
  *largest = high;
}

struct Slot {  // a score whose bucket spans several codes
  int64_t column;
  int32_t key;
};

struct Span {  // such a bucket
  int64_t rank;   // of its first score
  int64_t begin;  // of its slots
  int64_t count;
};

class RowCoder {  // the scratch of one thread
 public:
  void run(const Segment& row, uint8_t* codes) {
    find_buckets(row);
    each_chunk(row, [&](int64_t, const int32_t* keys, int64_t count) {
      for (int64_t i = 0; i < count; ++i) ++buckets_[bucket(keys[i])];
    });
    settle_buckets(row.count);
    each_chunk(row, [&](int64_t begin, const int32_t* keys, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        int64_t& place = buckets_[bucket(keys[i])];
        if (place >= 0) {
          codes[begin + i] = static_cast<uint8_t>(place);
        } else {
          slots_[~place--] = {begin + i, keys[i]};
        }
      }
    });
    for (const Span& span : spans_) settle_span(span, row.count, codes);
  }

 private:
  template <class Body>
  void each_chunk(const Segment& row, Body body) {
    const int64_t bytes = row.dtype == Dtype::float32 ? 4 : 2;
    for (int64_t begin = 0; begin < row.count; begin += kChunk) {
      const int64_t count = std::min(kChunk, row.count - begin);
      const char* values = static_cast<const char*>(row.values) + begin * bytes;
      whole_keys({values, row.norm ? row.norm + begin : nullptr, count, row.dtype}, keys_);
      body(begin, keys_, count);
    }
  }

  int64_t bucket(int32_t key) const { return static_cast<uint32_t>(key - smallest_) >> shift_; }

  void find_buckets(const Segment& row) {
    int32_t largest = INT32_MIN;
    smallest_ = INT32_MAX;
    each_chunk(row, [&](int64_t, const int32_t* keys, int64_t count) {
      widen_range(keys, count, &smallest_, &largest);
    });
    const int64_t most = std::min(kMostBuckets, 4 * row.count);
    for (shift_ = 0; bucket(largest) >= most;) ++shift_;
    buckets_.assign(bucket(largest) + 1, 0);
  }

  // The first rank with a higher code than `code`.
  static int64_t end_of_code(int64_t code, int64_t columns) { return ((code + 1) * columns + kCodes - 1) / kCodes; }

  // Counts become codes or, where a bucket spans several, the complement of the place of its next slot.
  void settle_buckets(int64_t columns) {
    int64_t rank = 0, code = 0, end = end_of_code(0, columns), slots = 0;
    spans_.clear();
    for (int64_t& bucket : buckets_) {
      const int64_t count = bucket;
      if (count == 0) continue;
      while (rank >= end) end = end_of_code(++code, columns);
      bucket = code;
      if (rank + count > end) {
        spans_.push_back({rank, slots, count});
        bucket = ~slots;
        slots += count;
      }
      rank += count;
    }
    if (slots_.size() < static_cast<size_t>(slots)) slots_.resize(slots);
  }

  void settle_span(const Span& span, int64_t columns, uint8_t* codes) {
    Slot* slots = slots_.data() + span.begin;
    const auto precedes = [](const Slot& a, const Slot& b) { return std::tie(a.key, a.column) < std::tie(b.key, b.column); };
    if (shift_ > 0) std::sort(slots, slots + span.count, precedes);
    for (int64_t i = 0; i < span.count; ++i) {
      codes[slots[i].column] = static_cast<uint8_t>((span.rank + i) * kCodes / columns);
    }
  }

  alignas(64) int32_t keys_[kChunk];
  int32_t smallest_;
  int shift_;
  std::vector<int64_t> buckets_;
  std::vector<Slot> slots_;
  std::vector<Span> spans_;
};

}  // namespace

void quantile_codes(Scores scores, uint8_t* codes, int threads) {
  const int64_t bytes = scores.rows * scores.columns * (scores.dtype == Dtype::float32 ? 4 : 2);
  threads = useful_threads(bytes, threads);
  advise_large_pages(codes, scores.rows * scores.columns);
  const Blocks by_row{scores.rows, kRows};
  std::vector<RowCoder> coders(threads);
  parallel_for(by_row.count(), threads, [&](int64_t block, int thread) {
    for (int64_t row = by_row.begin(block); row < by_row.begin(block) + by_row.length(block); ++row) {
      coders[thread].run(segment_of(scores, row, 0, scores.columns), codes + row * scores.columns);
    }
  });
}

}  // namespace pruneengine::cpu
