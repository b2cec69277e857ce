// Moments, counts above thresholds and a histogram of the scores |W|^power * norm, in one read of W.
//
// A strip of scores is made in the first-level cache and read there by one loop a result. Sums are float32 over a
// strip, scaled so that no power of a score leaves the range, and double from then on.
#include <cmath>
#include <limits>
#include <vector>

#include "detail/numeric.h"
#include "detail/parallel.h"
#include "detail/power.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kRows = 64;       // smallest block of rows
constexpr int64_t kColumns = 4096;  // block of columns
constexpr int64_t kStrip = 512;
constexpr int64_t kMostThresholds = 16;

// A bin is the upper 14 bits of a float32, 32 an octave; the first starts at 2^-44.
constexpr int kBins = 2048;
constexpr int kShift = 18;
constexpr int32_t kFirst = (127 - 44) << 5;

struct Moments {
  double sums[4] = {};  // of s, s^2, s^3, s^4
  int32_t least = std::numeric_limits<int32_t>::max();  // bits: scores are not negative, so they order like the floats
  int32_t most = -1;
  int64_t positive = 0;
  double log = 0, log_squared = 0, s_log = 0, square_log = 0;  // logarithms of base 2
  int64_t above[kMostThresholds] = {};
};

template <class T, Power kPower>
PRUNE_INLINE void raise_strip(const T* weight, const float* norm, float power, int64_t count, float* scores) {
  if (norm == nullptr) {
    for (int64_t i = 0; i < count; ++i) scores[i] = raised<kPower>(widen(weight[i]), power);
  } else {
    for (int64_t i = 0; i < count; ++i) scores[i] = raised<kPower>(widen(weight[i]), power) * norm[i];
  }
}

template <class T>
PRUNE_INLINE void scores_body(const T* __restrict weight, const float* __restrict norm, double power, int64_t count,
                              float* __restrict scores) {
  const float exponent = static_cast<float>(power);
  switch (kind_of(power)) {
    case Power::one: return raise_strip<T, Power::one>(weight, norm, exponent, count, scores);
    case Power::two: return raise_strip<T, Power::two>(weight, norm, exponent, count, scores);
    case Power::any: return raise_strip<T, Power::any>(weight, norm, exponent, count, scores);
  }
}

// Clones are plain functions: the attribute is unreliable on templates.
#define PRUNE_SCORES(T)                                                                                           \
  PRUNE_CLONES void scores_of(const T* weight, const float* norm, double power, int64_t count, float* scores) { \
    scores_body(weight, norm, power, count, scores);                                                              \
  }
PRUNE_SCORES(float)
PRUNE_SCORES(Half)
PRUNE_SCORES(Bfloat)
#undef PRUNE_SCORES

PRUNE_CLONES void add_strip(const float* __restrict scores, int64_t count, Moments& moments) {
  int32_t least = moments.least, most = -1;
#pragma omp simd reduction(min : least) reduction(max : most)
  for (int64_t i = 0; i < count; ++i) {
    const int32_t bits = static_cast<int32_t>(as_bits(scores[i]) & 0x7fffffffu);
    least = bits < least ? bits : least;
    most = bits > most ? bits : most;
  }
  moments.least = least;
  moments.most = std::max(moments.most, most);

  // The largest score becomes 1 to 2, so that what underflows in a power is nothing beside it.
  const int32_t exponent = std::min(std::max(most >> 23, 1), 253) - 127;
  const float scale = as_float(static_cast<uint32_t>(127 - exponent) << 23);
  float s1 = 0, s2 = 0, s3 = 0, s4 = 0;
#pragma omp simd reduction(+ : s1, s2, s3, s4)
  for (int64_t i = 0; i < count; ++i) {
    const float s = scores[i] * scale, square = s * s;
    s1 += s;
    s2 += square;
    s3 += square * s;
    s4 += square * square;
  }
  int32_t positive = 0;
  float log = 0, log_squared = 0, s_log = 0, square_log = 0;
#pragma omp simd reduction(+ : positive, log, log_squared, s_log, square_log)
  for (int64_t i = 0; i < count; ++i) {
    const bool is_positive = scores[i] > 0.0f;
    const float s = scores[i] * scale, l = choose(is_positive, log2_positive(scores[i]), 0.0f);
    positive += is_positive;
    log += l;
    log_squared += l * l;
    s_log += s * l;
    square_log += s * s * l;
  }
  if (most == 0x7f800000) log = log_squared = std::numeric_limits<float>::infinity();
  const double unit = std::ldexp(1.0, exponent);
  const float sums[4] = {s1, s2, s3, s4};
  double power = 1.0;
  for (int k = 0; k < 4; ++k) moments.sums[k] += sums[k] * (power *= unit);
  moments.positive += positive;
  moments.log += log;
  moments.log_squared += log_squared;
  moments.s_log += s_log * unit;
  moments.square_log += square_log * (unit * unit);
}

PRUNE_CLONES int32_t count_above(const float* scores, int64_t count, float threshold) {
  int32_t above = 0;
#pragma omp simd reduction(+ : above)
  for (int64_t i = 0; i < count; ++i) above += scores[i] > threshold;
  return above;
}

PRUNE_CLONES void bins_of(const float* __restrict scores, int64_t count, int32_t* __restrict bins) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t bin = (static_cast<int32_t>(as_bits(scores[i])) >> kShift) - kFirst;
    bins[i] = std::min(std::max(bin, 0), kBins - 1);
  }
}

// Neighbours often share a bin, and an increment waits for the last one of the same word: four take turns.
struct Histogram {
  uint32_t at[4][kBins] = {};

  void add(const int32_t* bins, int64_t count) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
      for (int k = 0; k < 4; ++k) ++at[k][bins[i + k]];
    }
    for (; i < count; ++i) ++at[0][bins[i]];
  }
  void add_to(int64_t* total) const {
    for (int bin = 0; bin < kBins; ++bin) {
      for (int k = 0; k < 4; ++k) total[bin] += at[k][bin];
    }
  }
};

template <class T>
void add_block(Matrix weight, int64_t row, int64_t rows, int64_t column, int64_t columns, const float* norm,
               double power, const float* thresholds, int64_t count, Moments& moments, int64_t* histogram) {
  Histogram counts;
  alignas(64) float scores[kStrip];
  alignas(64) int32_t bins[kStrip];
  for (int64_t r = row; r < row + rows; ++r) {
    for (int64_t c = column; c < column + columns; c += kStrip) {
      const int64_t length = std::min(kStrip, column + columns - c);
      scores_of(static_cast<const T*>(weight.data) + r * weight.stride + c, norm == nullptr ? norm : norm + c, power,
                length, scores);
      add_strip(scores, length, moments);
      for (int64_t k = 0; k < count; ++k) moments.above[k] += count_above(scores, length, thresholds[k]);
      bins_of(scores, length, bins);
      counts.add(bins, length);
    }
  }
  counts.add_to(histogram);
}

// Blocks in ascending order, so that the sums depend on the shape alone.
Moments merged(const std::vector<Moments>& parts) {
  Moments all;
  for (const Moments& part : parts) {
    for (int k = 0; k < 4; ++k) all.sums[k] += part.sums[k];
    all.least = std::min(all.least, part.least);
    all.most = std::max(all.most, part.most);
    all.positive += part.positive;
    all.log += part.log;
    all.log_squared += part.log_squared;
    all.s_log += part.s_log;
    all.square_log += part.square_log;
    for (int64_t k = 0; k < kMostThresholds; ++k) all.above[k] += part.above[k];
  }
  return all;
}

}  // namespace

void block_moments(Matrix weight, Dtype dtype, int64_t rows, int64_t columns, const float* norm, double power,
                   const float* thresholds, int64_t count, double* moments, int64_t* above, int64_t* histogram,
                   int threads) {
  const Blocks by_row = split(rows, kRows), by_column{columns, kColumns};
  const int64_t tiles = by_column.count();
  const auto add = dtype == Dtype::float32 ? add_block<float>
                   : dtype == Dtype::float16 ? add_block<Half>
                                             : add_block<Bfloat>;
  threads = useful_threads(rows * columns * (dtype == Dtype::float32 ? 4 : 2), threads);
  std::vector<Moments> parts(by_row.count() * tiles);
  std::vector<int64_t> histograms(threads * kBins);
  parallel_for(by_row.count() * tiles, threads, [&](int64_t task, int thread) {
    const int64_t band = task / tiles, tile = task % tiles;
    add(weight, by_row.begin(band), by_row.length(band), by_column.begin(tile), by_column.length(tile), norm, power,
        thresholds, count, parts[task], &histograms[thread * kBins]);
  });

  const Moments all = merged(parts);
  const double ln2 = 0.69314718055994530942, infinity = std::numeric_limits<double>::infinity();
  const bool nothing = all.most < 0;
  const double least = nothing ? infinity : as_float(static_cast<uint32_t>(all.least));
  const double most = nothing ? -infinity : as_float(static_cast<uint32_t>(all.most));
  const double values[12] = {static_cast<double>(rows * columns),
                             all.sums[0],
                             all.sums[1],
                             all.sums[2],
                             all.sums[3],
                             std::isnan(most) ? most : least,
                             most,
                             static_cast<double>(all.positive),
                             all.log * ln2,
                             all.log_squared * ln2 * ln2,
                             all.s_log * ln2,
                             all.square_log * ln2};
  std::copy(values, values + 12, moments);
  std::copy(all.above, all.above + count, above);
  std::fill(histogram, histogram + kBins, 0);
  for (size_t i = 0; i < histograms.size(); ++i) histogram[i % kBins] += histograms[i];
}

}  // namespace pruneengine::cpu
