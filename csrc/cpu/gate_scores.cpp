// Sum over tokens of x * dL/dx, per sample and channel.
#include <vector>

#include "detail/numeric.h"
#include "detail/parallel.h"
#include "detail/planes.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kTokens = 256;     // smallest block of tokens
constexpr int64_t kChannels = 4096;  // long rows, which the hardware prefetches

template <int kPlanes, class T>
PRUNE_INLINE void pass(const T* x, int64_t x_stride, const T* dx, int64_t dx_stride, const T* zeros, int64_t tokens,
                       int64_t steps, float* scores) {
  Planes<float, kPlanes, kChannels> sums;
  sums.clear(steps);
  for (int64_t token = 0; token < tokens; token += 4) {
    const int64_t left = tokens - token;
    const T *x0 = x + token * x_stride, *d0 = dx + token * dx_stride;
    const T *x1 = left > 1 ? x0 + x_stride : zeros, *d1 = left > 1 ? d0 + dx_stride : zeros;
    const T *x2 = left > 2 ? x0 + 2 * x_stride : zeros, *d2 = left > 2 ? d0 + 2 * dx_stride : zeros;
    const T *x3 = left > 3 ? x0 + 3 * x_stride : zeros, *d3 = left > 3 ? d0 + 3 * dx_stride : zeros;
#pragma omp simd
    for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 2
      for (int p = 0; p < kPlanes; ++p) {
        const float a = plane<kPlanes>(x0, i, p) * plane<kPlanes>(d0, i, p);
        const float b = plane<kPlanes>(x1, i, p) * plane<kPlanes>(d1, i, p);
        const float d = plane<kPlanes>(x2, i, p) * plane<kPlanes>(d2, i, p);
        const float e = plane<kPlanes>(x3, i, p) * plane<kPlanes>(d3, i, p);
        sums.at[p][i] += (a + b) + (d + e);
      }
    }
  }
  sums.put(scores, steps);
}

template <class T>
PRUNE_INLINE void block_body(const T* x, int64_t x_stride, const T* dx, int64_t dx_stride, const T* zeros,
                             int64_t tokens, int64_t channels, float* scores) {
  constexpr int kPlanes = planes_of<T>;
  const int64_t whole = channels - channels % kPlanes;
  pass<kPlanes>(x, x_stride, dx, dx_stride, zeros, tokens, whole / kPlanes, scores);
  if (whole == channels) return;
  pass<1>(x + whole, x_stride, dx + whole, dx_stride, zeros, tokens, channels - whole, scores + whole);
}

// Clones are plain functions: the attribute is unreliable on templates.
#define PRUNE_BLOCK(T)                                                                                       \
  PRUNE_CLONES void block(const T* x, int64_t x_stride, const T* dx, int64_t dx_stride, const T* zeros,      \
                          int64_t tokens, int64_t channels, float* scores) {                                 \
    block_body(x, x_stride, dx, dx_stride, zeros, tokens, channels, scores);                                 \
  }
PRUNE_BLOCK(float)
PRUNE_BLOCK(Half)
PRUNE_BLOCK(Bfloat)
#undef PRUNE_BLOCK

template <class T>
void run(Tokens x, Tokens dx, int64_t samples, int64_t tokens, int64_t channels, float* scores, int threads) {
  const Blocks by_token = split(tokens, kTokens);
  const Blocks by_channel{channels, kChannels};
  const int64_t bands = by_token.count(), tiles = by_channel.count();
  const int64_t together = std::max<int64_t>(1, kMostBlocks / std::max<int64_t>(1, bands));
  const Blocks by_sample{samples, std::min(together, std::max<int64_t>(1, samples))};
  const std::vector<T> zeros(std::min(channels, kChannels));
  float* parts = partials<float>(0, by_sample.size * bands * channels);
  threads = useful_threads(2 * by_sample.size * tokens * channels * static_cast<int64_t>(sizeof(T)), threads);

  const auto begin = [](Tokens from, int64_t sample, int64_t token, int64_t channel) {
    return static_cast<const T*>(from.data) + sample * from.sample_stride + token * from.token_stride + channel;
  };
  // In groups of samples, which bounds the partial results.
  for (int64_t group = 0; group < by_sample.count(); ++group) {
    const int64_t first = by_sample.begin(group), count = by_sample.length(group);
    parallel_for(count * bands * tiles, threads, [&](int64_t task, int) {
      const int64_t tile = task % tiles, part = task / tiles;  // part = sample of the group * bands + band
      const int64_t sample = first + part / bands, band = part % bands;
      const int64_t token = by_token.begin(band), channel = by_channel.begin(tile);
      block(begin(x, sample, token, channel), x.token_stride, begin(dx, sample, token, channel), dx.token_stride,
            zeros.data(), by_token.length(band), by_channel.length(tile), parts + part * channels + channel);
    });
    for (int64_t s = 0; s < count; ++s) {
      sum_parts(parts + s * bands * channels, bands, channels, channels, scores + (first + s) * channels);
    }
  }
}

}  // namespace

void gate_scores(Tokens x, Tokens dx, Dtype dtype, int64_t samples, int64_t tokens, int64_t channels, float* scores,
                 int threads) {
  switch (dtype) {
    case Dtype::float32: return run<float>(x, dx, samples, tokens, channels, scores, threads);
    case Dtype::float16: return run<Half>(x, dx, samples, tokens, channels, scores, threads);
    case Dtype::bfloat16: return run<Bfloat>(x, dx, samples, tokens, channels, scores, threads);
  }
}

}  // namespace pruneengine::cpu
