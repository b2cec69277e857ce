// The only file that knows Python: pointers as integers, sizes, strides. Checks belong to the caller.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "ops.h"

namespace py = pybind11;
using namespace pruneengine;

namespace {

using Pointer = uintptr_t;
using Released = py::call_guard<py::gil_scoped_release>;

template <class T = void>
T* to(Pointer address) {
  return reinterpret_cast<T*>(address);
}

Matrix matrix(Pointer data, int64_t stride) { return {to<const void>(data), stride}; }

void bind_cpu(py::module_ m) {
  m.def(
      "activation_stats",
      [](Pointer x, int64_t sample_stride, int64_t token_stride, Dtype dtype, int64_t samples, int64_t tokens,
         int64_t channels, Pointer total, Pointer squares, Pointer peak, int threads) {
        cpu::activation_stats({to<>(x), sample_stride, token_stride}, dtype, samples, tokens, channels,
                              to<float>(total), to<float>(squares), to<float>(peak), threads);
      },
      Released());
  m.def(
      "gate_scores",
      [](Pointer x, int64_t x_sample_stride, int64_t x_token_stride, Pointer dx, int64_t dx_sample_stride,
         int64_t dx_token_stride, Dtype dtype, int64_t samples, int64_t tokens, int64_t channels, Pointer scores,
         int threads) {
        cpu::gate_scores({to<>(x), x_sample_stride, x_token_stride}, {to<>(dx), dx_sample_stride, dx_token_stride},
                         dtype, samples, tokens, channels, to<float>(scores), threads);
      },
      Released());
  m.def(
      "weight_scores",
      [](Pointer weight, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, Pointer norm, double power,
         double norm_power, Pointer row_scores, Pointer column_scores, int threads) {
        cpu::weight_scores(matrix(weight, stride), dtype, rows, columns, to<const float>(norm), power, norm_power,
                           to<float>(row_scores), to<float>(column_scores), threads);
      },
      Released());
  m.def(
      "taylor_scores",
      [](Pointer weight, int64_t weight_stride, Dtype weight_dtype, Pointer gradient, int64_t gradient_stride,
         Dtype gradient_dtype, int64_t rows, int64_t columns, Pointer row_scores, Pointer column_scores, int threads) {
        cpu::taylor_scores(matrix(weight, weight_stride), weight_dtype, matrix(gradient, gradient_stride),
                           gradient_dtype, rows, columns, to<float>(row_scores), to<float>(column_scores), threads);
      },
      Released());
  m.def(
      "kth_value",
      [](Pointer scores, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, int64_t k, Pointer values,
         int threads) {
        cpu::kth_value(matrix(scores, stride), dtype, rows, columns, k, to<float>(values), threads);
      },
      Released());
  m.def(
      "select_mask",
      [](Pointer scores, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, int64_t k, Pointer mask,
         int threads) {
        cpu::select_mask(matrix(scores, stride), dtype, rows, columns, k, to<bool>(mask), threads);
      },
      Released());
  m.def(
      "gather_rows",
      [](Pointer weight, int64_t stride, int element_bytes, int64_t columns, Pointer index, int64_t kept, Pointer out,
         int64_t out_stride, int threads) {
        cpu::gather_rows(matrix(weight, stride), element_bytes, columns, to<const int64_t>(index), kept, to<>(out),
                         out_stride, threads);
      },
      Released());
  m.def(
      "gather_columns",
      [](Pointer weight, int64_t stride, int element_bytes, int64_t rows, Pointer index, int64_t kept, Pointer out,
         int64_t out_stride, int threads) {
        cpu::gather_columns(matrix(weight, stride), element_bytes, rows, to<const int64_t>(index), kept, to<>(out),
                            out_stride, threads);
      },
      Released());
}

#ifdef PRUNEENGINE_CUDA
void bind_cuda(py::module_ m) {
  m.def(
      "kth_value",
      [](Pointer scores, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, int64_t k, Pointer values,
         int device, Pointer stream) {
        cuda::kth_value(matrix(scores, stride), dtype, rows, columns, k, to<float>(values), device, stream);
      },
      Released());
  m.def(
      "select_mask",
      [](Pointer scores, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, int64_t k, Pointer mask,
         int device, Pointer stream) {
        cuda::select_mask(matrix(scores, stride), dtype, rows, columns, k, to<bool>(mask), device, stream);
      },
      Released());
  m.def(
      "gather_rows",
      [](Pointer weight, int64_t stride, int element_bytes, int64_t columns, int64_t bound, Pointer index,
         int64_t kept, Pointer out, int64_t out_stride, int device, Pointer stream) {
        cuda::gather_rows(matrix(weight, stride), element_bytes, columns, bound, to<const int64_t>(index), kept,
                          to<>(out), out_stride, device, stream);
      },
      Released());
  m.def(
      "gather_columns",
      [](Pointer weight, int64_t stride, int element_bytes, int64_t rows, int64_t bound, Pointer index, int64_t kept,
         Pointer out, int64_t out_stride, int device, Pointer stream) {
        cuda::gather_columns(matrix(weight, stride), element_bytes, rows, bound, to<const int64_t>(index), kept,
                             to<>(out), out_stride, device, stream);
      },
      Released());
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  py::enum_<Dtype>(m, "Dtype")
      .value("float32", Dtype::float32)
      .value("float16", Dtype::float16)
      .value("bfloat16", Dtype::bfloat16);
  bind_cpu(m.def_submodule("cpu"));
#ifdef PRUNEENGINE_CUDA
  bind_cuda(m.def_submodule("cuda"));
#endif
}
