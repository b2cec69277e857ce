// Sum, sum of squares and largest magnitude over tokens, per sample and channel, in one read.
#include <vector>

#include "numeric.h"
#include "parallel.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kTokens = 128;     // smallest block of tokens
constexpr int64_t kChannels = 1024;  // three running results each stay in the first-level cache

// Magnitudes order like their bit patterns, with NaN above infinity: an integer maximum keeps a NaN visible.
PRUNE_INLINE int32_t magnitude_bits(float value) { return static_cast<int32_t>(as_bits(value) & 0x7fffffffu); }

PRUNE_INLINE int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

template <class T>
PRUNE_INLINE void block_body(const T* x, int64_t stride, const T* zeros, int64_t tokens, int64_t channels,
                             float* __restrict total, float* __restrict squares, int32_t* __restrict peak) {
  for (int64_t token = 0; token < tokens; token += 4) {
    const int64_t left = tokens - token;
    const T* x0 = x + token * stride;
    const T* x1 = left > 1 ? x0 + stride : zeros;
    const T* x2 = left > 2 ? x0 + 2 * stride : zeros;
    const T* x3 = left > 3 ? x0 + 3 * stride : zeros;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float a = widen(x0[c]), b = widen(x1[c]), d = widen(x2[c]), e = widen(x3[c]);
      total[c] += (a + b) + (d + e);
      squares[c] += (a * a + b * b) + (d * d + e * e);
      peak[c] = larger(peak[c], larger(larger(magnitude_bits(a), magnitude_bits(b)),
                                       larger(magnitude_bits(d), magnitude_bits(e))));
    }
  }
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
  const int64_t size = samples * bands * channels;
  const std::vector<T> zeros(std::min(channels, kChannels));
  std::vector<float> totals(size), squared(size);
  std::vector<int32_t> peaks(size);
  threads = useful_threads(samples * tokens * channels * static_cast<int64_t>(sizeof(T)), threads);

  parallel_for(samples * bands * tiles, threads, [&](int64_t task, int) {
    const int64_t tile = task % tiles, part = task / tiles;  // part = sample * bands + band
    const int64_t sample = part / bands, band = part % bands;
    const int64_t channel = by_channel.begin(tile), at = part * channels + channel;
    const T* begin = static_cast<const T*>(x.data) + sample * x.sample_stride +
                     by_token.begin(band) * x.token_stride + channel;
    block(begin, x.token_stride, zeros.data(), by_token.length(band), by_channel.length(tile), &totals[at],
          &squared[at], &peaks[at]);
  });
  for (int64_t sample = 0; sample < samples; ++sample) {
    const int64_t from = sample * bands * channels, to = sample * channels;
    sum_parts(totals.data() + from, bands, channels, channels, total + to);
    sum_parts(squared.data() + from, bands, channels, channels, squares + to);
    for (int64_t c = 0; c < channels; ++c) {
      int32_t bits = 0;
      for (int64_t band = 0; band < bands; ++band) bits = larger(bits, peaks[from + band * channels + c]);
      peak[to + c] = as_float(static_cast<uint32_t>(bits));
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
