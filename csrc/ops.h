// Launchers over raw pointers: torch, Python and models are unknown here.
//
// Sizes are counts, strides are in elements, inner strides are 1. Results of the CPU side depend on the shape alone,
// never on `threads`. Launchers of the CUDA side enqueue on `stream` and throw std::runtime_error on a CUDA error.
#pragma once

#include <cstdint>
#include <vector>

namespace pruneengine {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2 };

struct Tokens {  // activations [samples, tokens, channels]
  const void* data;
  int64_t sample_stride;
  int64_t token_stride;
};

struct Matrix {  // [rows, columns]
  const void* data;
  int64_t stride;
};

// What a selection orders: the values of a matrix, or with a norm (float32 [columns]) their magnitude times it, in
// float32. -0.0 equals 0.0; of equal scores the first in row-major order counts as the smaller.
struct Scores {
  Matrix values;
  Dtype dtype;
  int64_t rows;
  int64_t columns;
  const float* norm;  // may be null
};

// A mask is bool [rows, columns], or as bits uint8 [rows, ceil(columns / 8)], the first column in the lowest bit and
// the bits past the last column zero; contiguous.
struct MaskedScores {
  Scores scores;
  uint8_t* mask;
};

// The kept rows (axis 0) or columns (axis 1) of one matrix.
struct Gather {
  const void* data;
  int64_t stride;
  int element_bytes;  // 1, 2, 4 or 8
  int axis;
  int64_t other;  // length of the axis that stays whole
  int64_t bound;  // length of the axis that the index runs over
  const int64_t* index;
  int64_t kept;
  void* out;
  int64_t out_stride;
};

namespace cpu {

// total, squares, peak: float32 [samples, channels].
void activation_stats(Tokens x, Dtype dtype, int64_t samples, int64_t tokens, int64_t channels, float* total,
                      float* squares, float* peak, int threads);

// scores: float32 [samples, channels].
void gate_scores(Tokens x, Tokens dx, Dtype dtype, int64_t samples, int64_t tokens, int64_t channels, float* scores,
                 int threads);

// One score per power: norms is float32 [powers, columns] (contiguous, raised already), or null for 1;
// row_scores: float32 [powers, rows], column_scores: float32 [powers, columns].
void weight_scores(Matrix weight, Dtype dtype, int64_t rows, int64_t columns, const float* norms,
                   const std::vector<double>& powers, float* row_scores, float* column_scores, int threads);

// row_scores: float32 [3, rows], column_scores: float32 [3, columns]: signed, absolute, squared; with absolute_only
// [1, rows] and [1, columns].
void taylor_scores(Matrix weight, Dtype weight_dtype, Matrix gradient, Dtype gradient_dtype, int64_t rows,
                   int64_t columns, bool absolute_only, float* row_scores, float* column_scores, int threads);

// norm: float32 [columns], raised already, or null for 1; thresholds: float32 [count], count <= 16.
// moments: double [12], above: int64 [count], histogram: int64 [2048].
void block_moments(Matrix weight, Dtype dtype, int64_t rows, int64_t columns, const float* norm, double power,
                   const float* thresholds, int64_t count, double* moments, int64_t* above, int64_t* histogram,
                   int threads);

// values: float32 [rows]; 1 <= k <= columns.
void kth_value(Scores scores, int64_t k, float* values, int threads);

// 0 <= k <= columns.
void select_mask(MaskedScores scores, int64_t k, bool bits, int threads);

// Over all matrices together, which share a dtype and may be empty; k counts elements of all.
void kth_value_global(const std::vector<MaskedScores>& matrices, int64_t k, float* value, int threads);
void select_mask_global(const std::vector<MaskedScores>& matrices, int64_t k, bool bits, int threads);

// 0 <= n <= m <= 32, m divides columns; true at the m - n smallest of each group.
void nm_mask(Scores scores, int n, int m, bool* mask, int threads);

// The scores are magnitudes where there is no norm; out: contiguous, of the scores' dtype.
void nm_apply(Scores scores, int n, int m, void* out, int threads);

// codes: uint8 [rows, columns], contiguous.
void quantile_codes(Scores scores, uint8_t* codes, int threads);

// out = weight where codes >= level, else 0; element_bytes is 1, 2, 4 or 8; out may be the weight.
void masked_copy(Matrix weight, int element_bytes, int64_t rows, int64_t columns, const uint8_t* codes,
                 int64_t codes_stride, int level, void* out, int64_t out_stride, int threads);

// Every index in range, checked by the caller; the outputs do not overlap anything.
void gather(const std::vector<Gather>& parts, int threads);

}  // namespace cpu

namespace cuda {

void kth_value(Scores scores, int64_t k, float* values, int device, uintptr_t stream);
void select_mask(MaskedScores scores, int64_t k, bool bits, int device, uintptr_t stream);

// scratch: device memory of `global_scratch_bytes(count)` bytes, aligned to 16.
int64_t global_scratch_bytes(int64_t count);
void kth_value_global(const std::vector<MaskedScores>& matrices, int64_t k, float* value, void* scratch, int device,
                      uintptr_t stream);
void select_mask_global(const std::vector<MaskedScores>& matrices, int64_t k, bool bits, void* scratch, int device,
                        uintptr_t stream);

// One launch for up to 64 parts. An index outside [0, bound) stops the kernel with a device-side trap, as torch's own
// gathers do.
void gather(const std::vector<Gather>& parts, int device, uintptr_t stream);

}  // namespace cuda
}  // namespace pruneengine
