// Row and column sums of |W|^power * norm, for several powers and norms, in one read of W.
#include <vector>

#include "detail/numeric.h"
#include "detail/parallel.h"
#include "detail/planes.h"
#include "detail/power.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kRows = 64;        // smallest block of rows
constexpr int64_t kColumns = 16384;  // long rows, which the hardware prefetches
constexpr int64_t kShared = 16;      // rows of a block that stay in the second-level cache from one score to the next

// Four rows a pass: the running column sums are loaded and stored once for four rows of weights.
template <int kPlanes, bool kNormed, class T, Power kPower>
PRUNE_INLINE void pass(const T* weight, int64_t stride, const T* zeros, int64_t rows, int64_t steps, const float* norm,
                       float power, float* row_sums, float* column_sums) {
  Planes<float, kPlanes, kColumns> sums, factors;
  sums.take(column_sums, steps);
  if (kNormed) factors.take(norm, steps);
  for (int64_t row = 0; row < rows; row += 4) {
    const int64_t left = rows - row;
    const T* w0 = weight + row * stride;
    const T* w1 = left > 1 ? w0 + stride : zeros;
    const T* w2 = left > 2 ? w0 + 2 * stride : zeros;
    const T* w3 = left > 3 ? w0 + 3 * stride : zeros;
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 2
      for (int p = 0; p < kPlanes; ++p) {
        const float a = raised<kPower>(plane<kPlanes>(w0, i, p), power);
        const float b = raised<kPower>(plane<kPlanes>(w1, i, p), power);
        const float d = raised<kPower>(plane<kPlanes>(w2, i, p), power);
        const float e = raised<kPower>(plane<kPlanes>(w3, i, p), power);
        const float factor = kNormed ? factors.at[p][i] : 1.0f;
        s0 += a * factor;
        s1 += b * factor;
        s2 += d * factor;
        s3 += e * factor;
        sums.at[p][i] += (a + b) + (d + e);
      }
    }
    const float of_rows[4] = {s0, s1, s2, s3};
    for (int64_t r = 0; r < std::min<int64_t>(4, left); ++r) row_sums[row + r] += of_rows[r];
  }
  sums.put(column_sums, steps);
}

template <bool kNormed, class T, Power kPower>
PRUNE_INLINE void columns_of(const T* weight, int64_t stride, const T* zeros, int64_t rows, int64_t columns,
                             const float* norm, float power, float* row_sums, float* column_sums) {
  constexpr int kPlanes = planes_of<T>;
  const int64_t whole = columns - columns % kPlanes;
  pass<kPlanes, kNormed, T, kPower>(weight, stride, zeros, rows, whole / kPlanes, norm, power, row_sums, column_sums);
  if (whole == columns) return;
  pass<1, kNormed, T, kPower>(weight + whole, stride, zeros, rows, columns - whole, kNormed ? norm + whole : norm,
                              power, row_sums, column_sums + whole);
}

// A null norm is 1.
template <class T, Power kPower>
PRUNE_INLINE void block_body(const T* weight, int64_t stride, const T* zeros, int64_t rows, int64_t columns,
                             const float* norm, float power, float* row_sums, float* column_sums) {
  if (norm == nullptr) {
    columns_of<false, T, kPower>(weight, stride, zeros, rows, columns, norm, power, row_sums, column_sums);
  } else {
    columns_of<true, T, kPower>(weight, stride, zeros, rows, columns, norm, power, row_sums, column_sums);
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
void run(Block<T> one, Block<T> two, Block<T> any, Matrix weight, int64_t rows, int64_t columns, const float* norms,
         const std::vector<double>& powers, float* row_scores, float* column_scores, int threads) {
  const Blocks by_row = split(rows, kRows);
  const Blocks by_column{columns, kColumns};
  const int64_t tiles = by_column.count(), scores = static_cast<int64_t>(powers.size());
  const std::vector<T> zeros(std::min(columns, kColumns));
  float* row_parts = partials<float>(0, tiles * scores * rows);
  float* column_parts = partials<float>(1, by_row.count() * scores * columns);
  std::fill_n(row_parts, tiles * scores * rows, 0.0f);
  std::fill_n(column_parts, by_row.count() * scores * columns, 0.0f);
  threads = useful_threads(rows * columns * static_cast<int64_t>(sizeof(T)), threads);

  parallel_for(by_row.count() * tiles, threads, [&](int64_t task, int) {
    const int64_t band = task / tiles, tile = task % tiles;
    const int64_t column = by_column.begin(tile), width = by_column.length(tile);
    const int64_t begin = by_row.begin(band), end = begin + by_row.length(band);
    const int64_t step = scores == 1 ? end - begin : kShared;
    for (int64_t row = begin; row < end; row += step) {
      const T* from = static_cast<const T*>(weight.data) + row * weight.stride + column;
      for (int64_t k = 0; k < scores; ++k) {
        const Block<T> block = powers[k] == 1.0 ? one : powers[k] == 2.0 ? two : any;
        block(from, weight.stride, zeros.data(), std::min(step, end - row), width,
              norms == nullptr ? nullptr : norms + k * columns + column, static_cast<float>(powers[k]),
              row_parts + (tile * scores + k) * rows + row, column_parts + (band * scores + k) * columns + column);
      }
    }
  });
  sum_parts(row_parts, tiles, scores * rows, scores * rows, row_scores);
  sum_parts(column_parts, by_row.count(), scores * columns, scores * columns, column_scores);
  if (norms == nullptr) return;
  for (int64_t i = 0; i < scores * columns; ++i) column_scores[i] *= norms[i];
}

}  // namespace

void weight_scores(Matrix weight, Dtype dtype, int64_t rows, int64_t columns, const float* norms,
                   const std::vector<double>& powers, float* row_scores, float* column_scores, int threads) {
#define PRUNE_RUN(T)                                                                                               \
  run<T>(block_##T##_one, block_##T##_two, block_##T##_any, weight, rows, columns, norms, powers, row_scores,      \
         column_scores, threads)
  switch (dtype) {
    case Dtype::float32: return PRUNE_RUN(float);
    case Dtype::float16: return PRUNE_RUN(Half);
    case Dtype::bfloat16: return PRUNE_RUN(Bfloat);
  }
#undef PRUNE_RUN
}

}  // namespace pruneengine::cpu
