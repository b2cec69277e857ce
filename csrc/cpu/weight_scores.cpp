// Row and column sums of |W|^power * norm^norm_power in one read of W.
#include <cmath>
#include <vector>

#include "numeric.h"
#include "parallel.h"
#include "power.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kRows = 64;       // smallest block of rows
constexpr int64_t kColumns = 4096;  // block of columns: its running sums stay in the first-level cache

enum class Power { one, two, any };

template <Power kPower>
PRUNE_INLINE float form(float value, float power) {
  if (kPower == Power::two) return value * value;
  const float a = magnitude(value);
  return kPower == Power::one ? a : power_of(a, power);
}

// Four rows a pass: the running column sums are loaded and stored once for four rows of weights.
template <class T, Power kPower>
PRUNE_INLINE void block_body(const T* weight, int64_t stride, const T* zeros, int64_t rows, int64_t columns,
                             const float* __restrict norm, float power, float* row_sums,
                             float* __restrict column_sums) {
  for (int64_t row = 0; row < rows; row += 4) {
    const int64_t left = rows - row;
    const T* w0 = weight + row * stride;
    const T* w1 = left > 1 ? w0 + stride : zeros;
    const T* w2 = left > 2 ? w0 + 2 * stride : zeros;
    const T* w3 = left > 3 ? w0 + 3 * stride : zeros;
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t c = 0; c < columns; ++c) {
      const float a = form<kPower>(widen(w0[c]), power);
      const float b = form<kPower>(widen(w1[c]), power);
      const float d = form<kPower>(widen(w2[c]), power);
      const float e = form<kPower>(widen(w3[c]), power);
      s0 += a * norm[c];
      s1 += b * norm[c];
      s2 += d * norm[c];
      s3 += e * norm[c];
      column_sums[c] += (a + b) + (d + e);
    }
    const float sums[4] = {s0, s1, s2, s3};
    for (int64_t i = 0; i < std::min<int64_t>(4, left); ++i) row_sums[row + i] = sums[i];
  }
}

// Clones are plain functions: the attribute is unreliable on templates.
#define PRUNE_BLOCK(T, kPower)                                                                              \
  PRUNE_CLONES void block_##T##_##kPower(const T* weight, int64_t stride, const T* zeros, int64_t rows,     \
                                         int64_t columns, const float* norm, float power, float* row_sums,  \
                                         float* column_sums) {                                              \
    block_body<T, Power::kPower>(weight, stride, zeros, rows, columns, norm, power, row_sums, column_sums); \
  }
PRUNE_BLOCK(float, one)
PRUNE_BLOCK(float, two)
PRUNE_BLOCK(float, any)
PRUNE_BLOCK(Half, one)
PRUNE_BLOCK(Half, two)
PRUNE_BLOCK(Half, any)
PRUNE_BLOCK(Bfloat, one)
PRUNE_BLOCK(Bfloat, two)
PRUNE_BLOCK(Bfloat, any)
#undef PRUNE_BLOCK

template <class T>
using Block = void (*)(const T*, int64_t, const T*, int64_t, int64_t, const float*, float, float*, float*);

template <class T>
void run(Block<T> block, Matrix weight, int64_t rows, int64_t columns, const std::vector<float>& norm, double power,
         float* row_scores, float* column_scores, int threads) {
  const Blocks by_row = split(rows, kRows);
  const Blocks by_column{columns, kColumns};
  const int64_t tiles = by_column.count();
  const std::vector<T> zeros(std::min(columns, kColumns));
  std::vector<float> row_parts(tiles * rows), column_parts(by_row.count() * columns);
  threads = useful_threads(rows * columns * static_cast<int64_t>(sizeof(T)), threads);

  parallel_for(by_row.count() * tiles, threads, [&](int64_t task, int) {
    const int64_t band = task / tiles, tile = task % tiles;
    const int64_t row = by_row.begin(band), column = by_column.begin(tile);
    block(static_cast<const T*>(weight.data) + row * weight.stride + column, weight.stride, zeros.data(),
          by_row.length(band), by_column.length(tile), norm.data() + column, static_cast<float>(power),
          row_parts.data() + tile * rows + row, column_parts.data() + band * columns + column);
  });
  sum_parts(row_parts.data(), tiles, rows, rows, row_scores);
  sum_parts(column_parts.data(), by_row.count(), columns, columns, column_scores);
  for (int64_t c = 0; c < columns; ++c) column_scores[c] *= norm[c];
}

}  // namespace

void weight_scores(Matrix weight, Dtype dtype, int64_t rows, int64_t columns, const float* norm, double power,
                   double norm_power, float* row_scores, float* column_scores, int threads) {
  std::vector<float> factor(columns, 1.0f);
  if (norm != nullptr) {
    for (int64_t c = 0; c < columns; ++c) {
      factor[c] = norm_power == 1.0 ? norm[c] : std::pow(norm[c], static_cast<float>(norm_power));
    }
  }
#define PRUNE_RUN(T)                                                                                                \
  run<T>(power == 1.0 ? block_##T##_one : power == 2.0 ? block_##T##_two : block_##T##_any, weight, rows, columns,  \
         factor, power, row_scores, column_scores, threads)
  switch (dtype) {
    case Dtype::float32: return PRUNE_RUN(float);
    case Dtype::float16: return PRUNE_RUN(Half);
    case Dtype::bfloat16: return PRUNE_RUN(Bfloat);
  }
#undef PRUNE_RUN
}

}  // namespace pruneengine::cpu
