// Row and column sums of W * G: signed, absolute and squared, in one read of both.
#include <vector>

#include "numeric.h"
#include "parallel.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kRows = 64;       // smallest block of rows
constexpr int64_t kColumns = 2048;  // three running sums each stay in the first-level cache

// Two rows a pass: six row sums and their operands are what fits the vector registers.
template <class W, class G>
PRUNE_INLINE void block_body(const W* weight, int64_t w_stride, const G* gradient, int64_t g_stride,
                             const float* zeros, int64_t rows, int64_t columns, float* row_sums, int64_t row_plane,
                             float* __restrict signed_sums, float* __restrict absolute_sums,
                             float* __restrict squared_sums) {
  for (int64_t row = 0; row < rows; row += 2) {
    const bool pair = row + 1 < rows;
    const W *w0 = weight + row * w_stride, *w1 = pair ? w0 + w_stride : reinterpret_cast<const W*>(zeros);
    const G *g0 = gradient + row * g_stride, *g1 = pair ? g0 + g_stride : reinterpret_cast<const G*>(zeros);
    float s0 = 0, s1 = 0, a0 = 0, a1 = 0, q0 = 0, q1 = 0;
#pragma omp simd reduction(+ : s0, s1, a0, a1, q0, q1)
    for (int64_t c = 0; c < columns; ++c) {
      const float p = widen(w0[c]) * widen(g0[c]), r = widen(w1[c]) * widen(g1[c]);
      const float p_size = magnitude(p), r_size = magnitude(r);
      const float p_square = p * p, r_square = r * r;
      s0 += p;
      s1 += r;
      a0 += p_size;
      a1 += r_size;
      q0 += p_square;
      q1 += r_square;
      signed_sums[c] += p + r;
      absolute_sums[c] += p_size + r_size;
      squared_sums[c] += p_square + r_square;
    }
    row_sums[row] = s0;
    row_sums[row + row_plane] = a0;
    row_sums[row + 2 * row_plane] = q0;
    if (pair) {
      row_sums[row + 1] = s1;
      row_sums[row + 1 + row_plane] = a1;
      row_sums[row + 1 + 2 * row_plane] = q1;
    }
  }
}

// Clones are plain functions: the attribute is unreliable on templates.
#define PRUNE_BLOCK(W, G)                                                                                             \
  PRUNE_CLONES void block(const W* weight, int64_t w_stride, const G* gradient, int64_t g_stride, const float* zeros, \
                          int64_t rows, int64_t columns, float* row_sums, int64_t row_plane, float* signed_sums,      \
                          float* absolute_sums, float* squared_sums) {                                                \
    block_body(weight, w_stride, gradient, g_stride, zeros, rows, columns, row_sums, row_plane, signed_sums,          \
               absolute_sums, squared_sums);                                                                          \
  }
PRUNE_BLOCK(float, float)
PRUNE_BLOCK(Half, Half)
PRUNE_BLOCK(Half, float)
PRUNE_BLOCK(Bfloat, Bfloat)
PRUNE_BLOCK(Bfloat, float)
#undef PRUNE_BLOCK

template <class W, class G>
void run(Matrix weight, Matrix gradient, int64_t rows, int64_t columns, float* row_scores, float* column_scores,
         int threads) {
  const Blocks by_row = split(rows, kRows);
  const Blocks by_column{columns, kColumns};
  const int64_t tiles = by_column.count();
  const std::vector<float> zeros(std::min(columns, kColumns));
  std::vector<float> row_parts(tiles * 3 * rows), column_parts(by_row.count() * 3 * columns);
  threads = useful_threads(rows * columns * static_cast<int64_t>(sizeof(W) + sizeof(G)), threads);

  parallel_for(by_row.count() * tiles, threads, [&](int64_t task, int) {
    const int64_t band = task / tiles, tile = task % tiles;
    const int64_t row = by_row.begin(band), column = by_column.begin(tile);
    float* column_sums = &column_parts[band * 3 * columns + column];
    block(static_cast<const W*>(weight.data) + row * weight.stride + column, weight.stride,
          static_cast<const G*>(gradient.data) + row * gradient.stride + column, gradient.stride, zeros.data(),
          by_row.length(band), by_column.length(tile), &row_parts[tile * 3 * rows + row], rows, column_sums,
          column_sums + columns, column_sums + 2 * columns);
  });
  sum_parts(row_parts.data(), tiles, 3 * rows, 3 * rows, row_scores);
  sum_parts(column_parts.data(), by_row.count(), 3 * columns, 3 * columns, column_scores);
}

}  // namespace

void taylor_scores(Matrix weight, Dtype weight_dtype, Matrix gradient, Dtype gradient_dtype, int64_t rows,
                   int64_t columns, float* row_scores, float* column_scores, int threads) {
  const bool wide = gradient_dtype == Dtype::float32;
#define PRUNE_RUN(W, G) run<W, G>(weight, gradient, rows, columns, row_scores, column_scores, threads)
  switch (weight_dtype) {
    case Dtype::float32: return PRUNE_RUN(float, float);
    case Dtype::float16: return wide ? PRUNE_RUN(Half, float) : PRUNE_RUN(Half, Half);
    case Dtype::bfloat16: return wide ? PRUNE_RUN(Bfloat, float) : PRUNE_RUN(Bfloat, Bfloat);
  }
#undef PRUNE_RUN
}

}  // namespace pruneengine::cpu
