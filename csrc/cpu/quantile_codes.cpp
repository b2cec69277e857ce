// The code floor(256 r / C) of each score's rank r in its row, without sorting the row.
//
// Scores are counted in buckets of consecutive keys: coarse ones of equal width first, then finer ones, the finer the
// more scores there are, so that any distribution ends in buckets of a few scores. All but 255 of these at most lie
// within one code; the scores of the others, and no more, are sorted. Keys are made anew for each pass, never stored.
#include <algorithm>
#include <vector>

#include "detail/keys.h"
#include "detail/numeric.h"
#include "detail/pages.h"
#include "detail/parallel.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kRows = 8;         // rows a task
constexpr int64_t kChunk = 1 << 11;  // keys that stay in the first-level cache
constexpr int64_t kCodes = 256;
constexpr int kMostCoarseBits = 11;
constexpr double kFine = 1 << 15;  // fine buckets, about

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
  int64_t code;   // of its first score
  int64_t begin;  // of its slots
  int64_t count;
};

// Bits that tell about `count` things apart.
int bits_for(int64_t count) { return count <= 1 ? 0 : 64 - __builtin_clzll(count - 1); }

struct Coarse {
  int64_t count;
  int64_t first;  // of its fine buckets
  int shift;      // from the rest of a key to a fine bucket
};

// By value in the loops over scores, which store bytes: those may change any member, for all that a compiler knows.
struct Buckets {
  uint32_t smallest;
  int shift;
  uint32_t rest;
  const Coarse* coarse;
  int64_t* fine;

  PRUNE_INLINE int64_t& operator()(int32_t key) const {
    const uint32_t offset = static_cast<uint32_t>(key) - smallest;
    const Coarse& range = coarse[offset >> shift];
    return fine[range.first + ((offset & rest) >> range.shift)];
  }
};

class RowCoder {  // the scratch of one thread
 public:
  void run(const Segment& row, uint8_t* codes) {
    make_coarse(row);
    make_fine(row.count);
    const uint32_t rest = (uint32_t{1} << shift_) - 1;
    const Buckets bucket{static_cast<uint32_t>(smallest_), shift_, rest, coarse_.data(), fine_.data()};
    each_chunk(row, [=](int64_t, const int32_t* keys, int64_t count) {
      for (int64_t i = 0; i < count; ++i) ++bucket(keys[i]);
    });
    settle_buckets(row.count);
    each_chunk(row, [=, slots = slots_.data()](int64_t begin, const int32_t* keys, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        int64_t& place = bucket(keys[i]);
        if (place >= 0) {
          codes[begin + i] = static_cast<uint8_t>(place);
        } else {
          slots[~place--] = {begin + i, keys[i]};
        }
      }
    });
    for (const Span& span : spans_) settle_span(span, row.count, codes);
  }

 private:
  // Calls body(begin, keys, count).
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

  uint32_t above_smallest(int32_t key) const { return static_cast<uint32_t>(key) - static_cast<uint32_t>(smallest_); }

  void make_coarse(const Segment& row) {
    int32_t largest = INT32_MIN;
    smallest_ = INT32_MAX;
    each_chunk(row, [&](int64_t, const int32_t* keys, int64_t count) {
      widen_range(keys, count, &smallest_, &largest);
    });
    // One bit at least: keys may differ by almost 2^32, which no shift of 32 bits would bring down.
    const int bits = std::clamp(bits_for(row.count / 4), 1, kMostCoarseBits);
    shift_ = std::max(0, 32 - (above_smallest(largest) ? __builtin_clz(above_smallest(largest)) : 32) - bits);
    coarse_.assign((above_smallest(largest) >> shift_) + 1, {});
    each_chunk(row, [=, coarse = coarse_.data()](int64_t, const int32_t* keys, int64_t count) {
      for (int64_t i = 0; i < count; ++i) ++coarse[above_smallest(keys[i]) >> shift_].count;
    });
  }

  void make_fine(int64_t columns) {
    const double share = std::min(0.5, kFine / static_cast<double>(columns));
    int64_t first = 0;
    for (Coarse& coarse : coarse_) {
      const int bits = std::min(shift_, bits_for(static_cast<int64_t>(static_cast<double>(coarse.count) * share)));
      coarse.first = first;
      coarse.shift = shift_ - bits;
      first += int64_t{1} << bits;
    }
    fine_.assign(first, 0);
  }

  // The first rank with a higher code than `code`.
  static int64_t end_of_code(int64_t code, int64_t columns) { return ((code + 1) * columns + kCodes - 1) / kCodes; }

  // Counts become codes or, where a bucket spans several, the complement of the place of its next slot.
  void settle_buckets(int64_t columns) {
    int64_t rank = 0, code = 0, end = end_of_code(0, columns), slots = 0;
    spans_.clear();
    for (int64_t& bucket : fine_) {
      const int64_t count = bucket;
      if (count == 0) continue;
      while (rank >= end) end = end_of_code(++code, columns);
      bucket = code;
      if (rank + count > end) {
        spans_.push_back({rank, code, slots, count});
        bucket = ~slots;
        slots += count;
      }
      rank += count;
    }
    if (slots_.size() < static_cast<size_t>(slots)) slots_.resize(slots);
  }

  void settle_span(const Span& span, int64_t columns, uint8_t* codes) {
    const auto precedes = [](const Slot& a, const Slot& b) {
      return a.key < b.key || (a.key == b.key && a.column < b.column);
    };
    Slot* slots = slots_.data() + span.begin;
    if (!std::is_sorted(slots, slots + span.count, precedes)) std::sort(slots, slots + span.count, precedes);
    int64_t code = span.code, end = end_of_code(code, columns);
    for (int64_t i = 0; i < span.count; ++i) {
      while (span.rank + i >= end) end = end_of_code(++code, columns);
      codes[slots[i].column] = static_cast<uint8_t>(code);
    }
  }

  alignas(64) int32_t keys_[kChunk];
  int32_t smallest_;
  int shift_;  // from a key above the smallest to a coarse bucket
  std::vector<Coarse> coarse_;
  std::vector<int64_t> fine_;
  std::vector<Slot> slots_;
  std::vector<Span> spans_;
};

}  // namespace

void quantile_codes(Scores scores, uint8_t* codes, int threads) {
  const int64_t bytes = scores.rows * scores.columns * (scores.dtype == Dtype::float32 ? 4 : 2);
  threads = useful_threads(bytes, threads);
  advise_large_pages(codes, scores.rows * scores.columns);
  const Blocks by_row{scores.rows, scores.rows < 8 * kRows ? 1 : kRows};
  std::vector<RowCoder> coders(threads);
  parallel_for(by_row.count(), threads, [&](int64_t block, int thread) {
    for (int64_t row = by_row.begin(block); row < by_row.begin(block) + by_row.length(block); ++row) {
      coders[thread].run(segment_of(scores, row, 0, scores.columns), codes + row * scores.columns);
    }
  });
}

}  // namespace pruneengine::cpu
