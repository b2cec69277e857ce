// The k-th smallest score of each row, and the mask of exactly k smallest, without sorting.
//
// Keys are made once a row and stay in the first-level cache. Neighbouring rows have similar thresholds, so the search
// for the k-th key starts at the one of the row before.
#include <algorithm>
#include <vector>

#include "detail/kth_key.h"
#include "detail/mark.h"
#include "detail/pages.h"
#include "detail/parallel.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kRows = 8;                    // rows a task
constexpr int64_t kLongRow = int64_t{1} << 18;  // columns from which a row is split among threads
constexpr int32_t kNearStep = 4, kFarStep = 1 << 14;

struct Scratch {  // of one thread
  explicit Scratch(int64_t columns) : keys(columns), ties(columns), mask(columns) {}

  std::vector<int16_t> keys;
  Ties ties;
  std::vector<uint8_t> mask;
  int16_t guess = 0;
};

struct Found {
  Border border;
  int64_t wanted;  // how many equals of the border are among the k
};

Found find(const Segment& segment, bool has_lower_half, int64_t k, Scratch& scratch) {
  const int16_t* keys = scratch.keys.data();
  Ties& ties = scratch.ties;
  upper_keys(segment, scratch.keys.data());
  const KthKey upper = kth_key(keys, segment.count, k, scratch.guess, kNearStep);
  scratch.guess = upper.key;
  find_ties(segment, has_lower_half, keys, upper.key, ties);
  if (!has_lower_half) return {{upper.key, 0}, k - upper.below};
  const KthKey lower = kth_key(ties.lower.data(), ties.count, k - upper.below, 0, kFarStep);
  return {{upper.key, lower.key}, k - upper.below - lower.below};
}

// Calls body(row, found, scratch) for every row, in any order.
template <class Body>
void each_row(const Scores& scores, int64_t k, int threads, Body body) {
  const int64_t bytes = scores.rows * scores.columns * (scores.dtype == Dtype::float32 ? 4 : 2);
  threads = useful_threads(bytes, threads);
  const Blocks by_row{scores.rows, kRows};
  std::vector<Scratch> scratch(threads, Scratch(scores.columns));
  parallel_for(by_row.count(), threads, [&](int64_t block, int thread) {
    for (int64_t i = 0; i < by_row.length(block); ++i) {
      const int64_t row = by_row.begin(block) + i;
      const Segment segment = segment_of(scores, row, 0, scores.columns);
      body(row, find(segment, has_lower_half(scores), k, scratch[thread]), scratch[thread]);
    }
  });
}

Scores one_row(Scores scores, int64_t row) {
  scores.values.data = segment_of(scores, row, 0, scores.columns).values;
  scores.rows = 1;
  return scores;
}

}  // namespace

void kth_value(Scores scores, int64_t k, float* values, int threads) {
  if (scores.columns >= kLongRow) {
    for (int64_t row = 0; row < scores.rows; ++row) {
      kth_value_global({{one_row(scores, row), nullptr}}, k, values + row, threads);
    }
    return;
  }
  each_row(scores, k, threads, [&](int64_t row, const Found& found, const Scratch&) {
    values[row] = score_of(scores, found.border.upper, found.border.lower);
  });
}

void select_mask(MaskedScores masked, int64_t k, bool bits, int threads) {
  const Scores& scores = masked.scores;
  const int64_t mask_bytes = bits ? (scores.columns + 7) / 8 : scores.columns;
  advise_large_pages(masked.mask, scores.rows * mask_bytes);
  if (k == 0) {
    std::fill(masked.mask, masked.mask + scores.rows * mask_bytes, 0);
    return;
  }
  if (scores.columns >= kLongRow) {
    for (int64_t row = 0; row < scores.rows; ++row) {
      select_mask_global({{one_row(scores, row), masked.mask + row * mask_bytes}}, k, bits, threads);
    }
    return;
  }
  each_row(scores, k, threads, [&](int64_t row, const Found& found, Scratch& scratch) {
    uint8_t* out = masked.mask + row * mask_bytes;
    uint8_t* mask = bits ? scratch.mask.data() : out;
    mark(scratch.keys.data(), scores.columns, scratch.ties, found.border, found.wanted, mask);
    if (bits) pack_bits(mask, scores.columns, out);
  });
}

}  // namespace pruneengine::cpu
