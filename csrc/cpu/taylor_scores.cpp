// Row and column sums of W * G: signed, absolute and squared, or absolute alone, in one read of both.
#include <vector>

#include "detail/numeric.h"
#include "detail/parallel.h"
#include "detail/planes.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kRows = 64;       // smallest block of rows
constexpr int64_t kColumns = 4096;  // long rows, which the hardware prefetches

// Two rows a pass: six row sums and their operands are what fits the vector registers.
template <int kPlanes, class W, class G>
PRUNE_INLINE void all_forms(const W* weight, int64_t w_stride, const G* gradient, int64_t g_stride,
                            const float* zeros, int64_t rows, int64_t steps, float* row_sums, int64_t row_plane,
                            float* column_sums, int64_t column_plane) {
  Planes<float, kPlanes, kColumns> of_signed, of_absolute, of_squared;
  of_signed.clear(steps);
  of_absolute.clear(steps);
  of_squared.clear(steps);
  for (int64_t row = 0; row < rows; row += 2) {
    const bool pair = row + 1 < rows;
    const W *w0 = weight + row * w_stride, *w1 = pair ? w0 + w_stride : reinterpret_cast<const W*>(zeros);
    const G *g0 = gradient + row * g_stride, *g1 = pair ? g0 + g_stride : reinterpret_cast<const G*>(zeros);
    float s0 = 0, s1 = 0, a0 = 0, a1 = 0, q0 = 0, q1 = 0;
#pragma omp simd reduction(+ : s0, s1, a0, a1, q0, q1)
    for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 2
      for (int k = 0; k < kPlanes; ++k) {
        const float p = plane<kPlanes>(w0, i, k) * plane<kPlanes>(g0, i, k);
        const float r = plane<kPlanes>(w1, i, k) * plane<kPlanes>(g1, i, k);
        const float p_size = magnitude(p), r_size = magnitude(r);
        const float p_square = p * p, r_square = r * r;
        s0 += p;
        s1 += r;
        a0 += p_size;
        a1 += r_size;
        q0 += p_square;
        q1 += r_square;
        of_signed.at[k][i] += p + r;
        of_absolute.at[k][i] += p_size + r_size;
        of_squared.at[k][i] += p_square + r_square;
      }
    }
    const float sums[3][2] = {{s0, s1}, {a0, a1}, {q0, q1}};
    for (int form = 0; form < 3; ++form) {
      for (int r = 0; r < 1 + pair; ++r) row_sums[form * row_plane + row + r] += sums[form][r];
    }
  }
  of_signed.put(column_sums, steps);
  of_absolute.put(column_sums + column_plane, steps);
  of_squared.put(column_sums + 2 * column_plane, steps);
}

// Four rows a pass: the running column sums are loaded and stored once for four rows of products.
template <int kPlanes, class W, class G>
PRUNE_INLINE void absolute_form(const W* weight, int64_t w_stride, const G* gradient, int64_t g_stride,
                                const float* zeros, int64_t rows, int64_t steps, float* row_sums,
                                float* column_sums) {
  Planes<float, kPlanes, kColumns> sums;
  sums.clear(steps);
  for (int64_t row = 0; row < rows; row += 4) {
    const W* w[4];
    const G* g[4];
    for (int r = 0; r < 4; ++r) {
      const bool inside = row + r < rows;
      w[r] = inside ? weight + (row + r) * w_stride : reinterpret_cast<const W*>(zeros);
      g[r] = inside ? gradient + (row + r) * g_stride : reinterpret_cast<const G*>(zeros);
    }
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 2
      for (int k = 0; k < kPlanes; ++k) {
        const float a = magnitude(plane<kPlanes>(w[0], i, k) * plane<kPlanes>(g[0], i, k));
        const float b = magnitude(plane<kPlanes>(w[1], i, k) * plane<kPlanes>(g[1], i, k));
        const float d = magnitude(plane<kPlanes>(w[2], i, k) * plane<kPlanes>(g[2], i, k));
        const float e = magnitude(plane<kPlanes>(w[3], i, k) * plane<kPlanes>(g[3], i, k));
        s0 += a;
        s1 += b;
        s2 += d;
        s3 += e;
        sums.at[k][i] += (a + b) + (d + e);
      }
    }
    const float of_rows[4] = {s0, s1, s2, s3};
    for (int64_t r = 0; r < std::min<int64_t>(4, rows - row); ++r) row_sums[row + r] += of_rows[r];
  }
  sums.put(column_sums, steps);
}

template <class W, class G>
struct Block {
  const W* weight;
  int64_t w_stride;
  const G* gradient;
  int64_t g_stride;
  const float* zeros;
  int64_t rows, columns;
  bool absolute_only;
  float* row_sums;
  int64_t row_plane;
  float* column_sums;
  int64_t column_plane;

  template <int kPlanes>
  PRUNE_INLINE void pass(int64_t from, int64_t steps) const {
    if (absolute_only) {
      absolute_form<kPlanes>(weight + from, w_stride, gradient + from, g_stride, zeros, rows, steps, row_sums,
                             column_sums + from);
    } else {
      all_forms<kPlanes>(weight + from, w_stride, gradient + from, g_stride, zeros, rows, steps, row_sums, row_plane,
                         column_sums + from, column_plane);
    }
  }
  PRUNE_INLINE void run() const {
    constexpr int kPlanes = planes_of<W, G>;
    const int64_t whole = columns - columns % kPlanes;
    pass<kPlanes>(0, whole / kPlanes);
    if (whole < columns) pass<1>(whole, columns - whole);
  }
};

// Clones are plain functions: the attribute is unreliable on templates.
#define PRUNE_BLOCK(W, G) \
  PRUNE_CLONES void run_block(const Block<W, G>& block) { block.run(); }
PRUNE_BLOCK(float, float)
PRUNE_BLOCK(Half, Half)
PRUNE_BLOCK(Half, float)
PRUNE_BLOCK(Bfloat, Bfloat)
PRUNE_BLOCK(Bfloat, float)
#undef PRUNE_BLOCK

template <class W, class G>
void run(Matrix weight, Matrix gradient, int64_t rows, int64_t columns, bool absolute_only, float* row_scores,
         float* column_scores, int threads) {
  const Blocks by_row = split(rows, kRows);
  const Blocks by_column{columns, kColumns};
  const int64_t tiles = by_column.count(), forms = absolute_only ? 1 : 3;
  const std::vector<float> zeros(std::min(columns, kColumns));
  float* row_parts = partials<float>(0, tiles * forms * rows);
  float* column_parts = partials<float>(1, by_row.count() * forms * columns);
  std::fill_n(row_parts, tiles * forms * rows, 0.0f);
  threads = useful_threads(rows * columns * static_cast<int64_t>(sizeof(W) + sizeof(G)), threads);

  parallel_for(by_row.count() * tiles, threads, [&](int64_t task, int) {
    const int64_t band = task / tiles, tile = task % tiles;
    const int64_t row = by_row.begin(band), column = by_column.begin(tile);
    Block<W, G> block;
    block.weight = static_cast<const W*>(weight.data) + row * weight.stride + column;
    block.w_stride = weight.stride;
    block.gradient = static_cast<const G*>(gradient.data) + row * gradient.stride + column;
    block.g_stride = gradient.stride;
    block.zeros = zeros.data();
    block.rows = by_row.length(band);
    block.columns = by_column.length(tile);
    block.absolute_only = absolute_only;
    block.row_sums = row_parts + tile * forms * rows + row;
    block.row_plane = rows;
    block.column_sums = column_parts + band * forms * columns + column;
    block.column_plane = columns;
    run_block(block);
  });
  sum_parts(row_parts, tiles, forms * rows, forms * rows, row_scores);
  sum_parts(column_parts, by_row.count(), forms * columns, forms * columns, column_scores);
}

}  // namespace

void taylor_scores(Matrix weight, Dtype weight_dtype, Matrix gradient, Dtype gradient_dtype, int64_t rows,
                   int64_t columns, bool absolute_only, float* row_scores, float* column_scores, int threads) {
  const bool wide = gradient_dtype == Dtype::float32;
#define PRUNE_RUN(W, G) run<W, G>(weight, gradient, rows, columns, absolute_only, row_scores, column_scores, threads)
  switch (weight_dtype) {
    case Dtype::float32: return PRUNE_RUN(float, float);
    case Dtype::float16: return wide ? PRUNE_RUN(Half, float) : PRUNE_RUN(Half, Half);
    case Dtype::bfloat16: return wide ? PRUNE_RUN(Bfloat, float) : PRUNE_RUN(Bfloat, Bfloat);
  }
#undef PRUNE_RUN
}

}  // namespace pruneengine::cpu
