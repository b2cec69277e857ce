// Launchers over raw pointers: torch, Python and models are unknown here.
//
// Sizes are counts, strides are in elements, inner strides are 1. Results of the CPU side depend on the shape alone,
// never on `threads`. Launchers of the CUDA side enqueue on `stream` and throw std::runtime_error on a CUDA error.
#pragma once

#include <cstdint>

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

namespace cpu {

// total, squares, peak: float32 [samples, channels].
void activation_stats(Tokens x, Dtype dtype, int64_t samples, int64_t tokens, int64_t channels, float* total,
                      float* squares, float* peak, int threads);

// scores: float32 [samples, channels].
void gate_scores(Tokens x, Tokens dx, Dtype dtype, int64_t samples, int64_t tokens, int64_t channels, float* scores,
                 int threads);

// norm: float32 [columns], or null for 1.
void weight_scores(Matrix weight, Dtype dtype, int64_t rows, int64_t columns, const float* norm, double power,
                   double norm_power, float* row_scores, float* column_scores, int threads);

// row_scores: float32 [3, rows], column_scores: float32 [3, columns].
void taylor_scores(Matrix weight, Dtype weight_dtype, Matrix gradient, Dtype gradient_dtype, int64_t rows,
                   int64_t columns, float* row_scores, float* column_scores, int threads);

// values: float32 [rows]; 1 <= k <= columns.
void kth_value(Matrix scores, Dtype dtype, int64_t rows, int64_t columns, int64_t k, float* values, int threads);

// mask: bool [rows, columns], contiguous; 0 <= k <= columns.
void select_mask(Matrix scores, Dtype dtype, int64_t rows, int64_t columns, int64_t k, bool* mask, int threads);

// Elements of 1, 2, 4 or 8 bytes; every index in range, checked by the caller.
void gather_rows(Matrix weight, int element_bytes, int64_t columns, const int64_t* index, int64_t kept, void* out,
                 int64_t out_stride, int threads);
void gather_columns(Matrix weight, int element_bytes, int64_t rows, const int64_t* index, int64_t kept, void* out,
                    int64_t out_stride, int threads);

}  // namespace cpu

namespace cuda {

void kth_value(Matrix scores, Dtype dtype, int64_t rows, int64_t columns, int64_t k, float* values, int device,
               uintptr_t stream);
void select_mask(Matrix scores, Dtype dtype, int64_t rows, int64_t columns, int64_t k, bool* mask, int device,
                 uintptr_t stream);

// An index outside [0, bound) stops the kernel with a device-side trap, as torch's own gathers do.
void gather_rows(Matrix weight, int element_bytes, int64_t columns, int64_t bound, const int64_t* index, int64_t kept,
                 void* out, int64_t out_stride, int device, uintptr_t stream);
void gather_columns(Matrix weight, int element_bytes, int64_t rows, int64_t bound, const int64_t* index, int64_t kept,
                    void* out, int64_t out_stride, int device, uintptr_t stream);

}  // namespace cuda
}  // namespace pruneengine
