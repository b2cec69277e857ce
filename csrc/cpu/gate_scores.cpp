// Sum over tokens of x * dL/dx, per sample and channel.
#include <vector>

#include "numeric.h"
#include "parallel.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kTokens = 128;     // smallest block of tokens
constexpr int64_t kChannels = 2048;  // running sums stay in the first-level cache

template <class T>
PRUNE_INLINE void block_body(const T* x, int64_t x_stride, const T* dx, int64_t dx_stride, const T* zeros,
                             int64_t tokens, int64_t channels, float* __restrict scores) {
  for (int64_t token = 0; token < tokens; token += 4) {
    const int64_t left = tokens - token;
    const T *x0 = x + token * x_stride, *d0 = dx + token * dx_stride;
    const T *x1 = left > 1 ? x0 + x_stride : zeros, *d1 = left > 1 ? d0 + dx_stride : zeros;
    const T *x2 = left > 2 ? x0 + 2 * x_stride : zeros, *d2 = left > 2 ? d0 + 2 * dx_stride : zeros;
    const T *x3 = left > 3 ? x0 + 3 * x_stride : zeros, *d3 = left > 3 ? d0 + 3 * dx_stride : zeros;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      scores[c] += (widen(x0[c]) * widen(d0[c]) + widen(x1[c]) * widen(d1[c])) +
                   (widen(x2[c]) * widen(d2[c]) + widen(x3[c]) * widen(d3[c]));
    }
  }
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
  const std::vector<T> zeros(std::min(channels, kChannels));
  std::vector<float> parts(samples * bands * channels);
  threads = useful_threads(2 * samples * tokens * channels * static_cast<int64_t>(sizeof(T)), threads);

  const auto begin = [](Tokens from, int64_t sample, int64_t token, int64_t channel) {
    return static_cast<const T*>(from.data) + sample * from.sample_stride + token * from.token_stride + channel;
  };
  parallel_for(samples * bands * tiles, threads, [&](int64_t task, int) {
    const int64_t tile = task % tiles, part = task / tiles;  // part = sample * bands + band
    const int64_t sample = part / bands, band = part % bands;
    const int64_t token = by_token.begin(band), channel = by_channel.begin(tile);
    block(begin(x, sample, token, channel), x.token_stride, begin(dx, sample, token, channel), dx.token_stride,
          zeros.data(), by_token.length(band), by_channel.length(tile), &parts[part * channels + channel]);
  });
  for (int64_t sample = 0; sample < samples; ++sample) {
    sum_parts(parts.data() + sample * bands * channels, bands, channels, channels, scores + sample * channels);
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
