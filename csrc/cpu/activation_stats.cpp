// Sum, sum of squares and largest magnitude over tokens, per sample and channel, in one read.
#include <vector>

#include "detail/numeric.h"
#include "detail/parallel.h"
#include "detail/planes.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kTokens = 256;     // smallest block of tokens
constexpr int64_t kChannels = 4096;  // long rows, which the hardware prefetches; results stay in the second-level cache
constexpr int kRows = 8;             // tokens a pass: one load and store of the running results for all of them

// Magnitudes order like their bit patterns, with NaN above infinity: an integer maximum keeps a NaN visible.
PRUNE_INLINE int32_t magnitude_bits(float value) { return static_cast<int32_t>(as_bits(value) & 0x7fffffffu); }

PRUNE_INLINE int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

template <int kPlanes, class T>
PRUNE_INLINE void pass(const T* x, int64_t stride, const T* zeros, int64_t tokens, int64_t steps, float* total,
                       float* squares, int32_t* peak) {
  Planes<float, kPlanes, kChannels> sums, square_sums;
  Planes<int32_t, kPlanes, kChannels> peaks;
  sums.clear(steps);
  square_sums.clear(steps);
  peaks.clear(steps);
  for (int64_t token = 0; token < tokens; token += kRows) {
    const T* row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = token + r < tokens ? x + (token + r) * stride : zeros;
#pragma omp simd
    for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 2
      for (int p = 0; p < kPlanes; ++p) {
        float sum = 0, square = 0;
        int32_t most = peaks.at[p][i];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; r += 2) {
          const float a = plane<kPlanes>(row[r], i, p), b = plane<kPlanes>(row[r + 1], i, p);
          sum += a + b;
          square += a * a + b * b;
          most = larger(most, larger(magnitude_bits(a), magnitude_bits(b)));
        }
        sums.at[p][i] += sum;
        square_sums.at[p][i] += square;
        peaks.at[p][i] = most;
      }
    }
  }
  sums.put(total, steps);
  square_sums.put(squares, steps);
  peaks.put(peak, steps);
}

template <class T>
PRUNE_INLINE void block_body(const T* x, int64_t stride, const T* zeros, int64_t tokens, int64_t channels,
                             float* total, float* squares, int32_t* peak) {
  constexpr int kPlanes = planes_of<T>;
  const int64_t whole = channels - channels % kPlanes;
  pass<kPlanes>(x, stride, zeros, tokens, whole / kPlanes, total, squares, peak);
  if (whole == channels) return;
  pass<1>(x + whole, stride, zeros, tokens, channels - whole, total + whole, squares + whole, peak + whole);
}

// Clones are plain functions: the attribute is unreliable on templates.
#define PRUNE_BLOCK(T)                                                                                        \
  PRUNE_CLONES void block(const T* x, int64_t stride, const T* zeros, int64_t tokens, int64_t channels,       \
                          float* total, float* squares, int32_t* peak) {                                      \
    block_body(x, stride, zeros, tokens, channels, total, squares, peak);                                     \
  }
PRUNE_BLOCK(float)
PRUNE_BLOCK(Half)
PRUNE_BLOCK(Bfloat)
#undef PRUNE_BLOCK

template <class T>
void run(Tokens x, int64_t samples, int64_t tokens, int64_t channels, float* total, float* squares, float* peak,
         int threads) {
  const Blocks by_token = split(tokens, kTokens);
  const Blocks by_channel{channels, kChannels};
  const int64_t bands = by_token.count(), tiles = by_channel.count();
  const int64_t together = std::max<int64_t>(1, kMostBlocks / std::max<int64_t>(1, bands));
  const Blocks by_sample{samples, std::min(together, std::max<int64_t>(1, samples))};
  const int64_t size = by_sample.size * bands * channels;
  const std::vector<T> zeros(std::min(channels, kChannels));
  float *totals = partials<float>(0, size), *squared = partials<float>(1, size);
  int32_t* peaks = partials<int32_t>(0, size);
  threads = useful_threads(by_sample.size * tokens * channels * static_cast<int64_t>(sizeof(T)), threads);

  // In groups of samples, which bounds the partial results.
  for (int64_t group = 0; group < by_sample.count(); ++group) {
    const int64_t first = by_sample.begin(group), count = by_sample.length(group);
    parallel_for(count * bands * tiles, threads, [&](int64_t task, int) {
      const int64_t tile = task % tiles, part = task / tiles;  // part = sample of the group * bands + band
      const int64_t sample = first + part / bands, band = part % bands;
      const int64_t channel = by_channel.begin(tile), at = part * channels + channel;
      const T* begin = static_cast<const T*>(x.data) + sample * x.sample_stride +
                       by_token.begin(band) * x.token_stride + channel;
      block(begin, x.token_stride, zeros.data(), by_token.length(band), by_channel.length(tile), totals + at,
            squared + at, peaks + at);
    });
    for (int64_t s = 0; s < count; ++s) {
      const int64_t from = s * bands * channels, to = (first + s) * channels;
      sum_parts(totals + from, bands, channels, channels, total + to);
      sum_parts(squared + from, bands, channels, channels, squares + to);
      int32_t* most = peaks + from;
      for (int64_t band = 1; band < bands; ++band) {
        for (int64_t c = 0; c < channels; ++c) most[c] = larger(most[c], most[band * channels + c]);
      }
      for (int64_t c = 0; c < channels; ++c) peak[to + c] = as_float(static_cast<uint32_t>(most[c]));
    }
  }
}

}  // namespace

void activation_stats(Tokens x, Dtype dtype, int64_t samples, int64_t tokens, int64_t channels, float* total,
                      float* squares, float* peak, int threads) {
  switch (dtype) {
    case Dtype::float32: return run<float>(x, samples, tokens, channels, total, squares, peak, threads);
    case Dtype::float16: return run<Half>(x, samples, tokens, channels, total, squares, peak, threads);
    case Dtype::bfloat16: return run<Bfloat>(x, samples, tokens, channels, total, squares, peak, threads);
  }
}

}  // namespace pruneengine::cpu
