// The only file that knows Python: pointers as integers, sizes, strides. Checks belong to the caller.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

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

Scores scores(Pointer values, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, Pointer norm) {
  return {matrix(values, stride), dtype, rows, columns, to<const float>(norm)};
}

// (data, stride, rows, columns, norm, mask)
using MatrixTuple = std::tuple<Pointer, int64_t, int64_t, int64_t, Pointer, Pointer>;

std::vector<MaskedScores> matrices_of(const std::vector<MatrixTuple>& tuples, Dtype dtype) {
  std::vector<MaskedScores> matrices;
  for (const auto& [data, stride, rows, columns, norm, mask] : tuples) {
    matrices.push_back({scores(data, stride, dtype, rows, columns, norm), to<uint8_t>(mask)});
  }
  return matrices;
}

// (data, stride, element bytes, axis, other, bound, index, kept, out, out stride)
using GatherTuple =
    std::tuple<Pointer, int64_t, int, int, int64_t, int64_t, Pointer, int64_t, Pointer, int64_t>;

std::vector<Gather> gathers_of(const std::vector<GatherTuple>& tuples) {
  std::vector<Gather> parts;
  for (const auto& [data, stride, bytes, axis, other, bound, index, kept, out, out_stride] : tuples) {
    parts.push_back({to<const void>(data), stride, bytes, axis, other, bound, to<const int64_t>(index), kept, to<>(out),
                     out_stride});
  }
  return parts;
}

void bind_sums(py::module_ m) {
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
         int64_t dx_token_stride, Dtype dtype, int64_t samples, int64_t tokens, int64_t channels, Pointer out,
         int threads) {
        cpu::gate_scores({to<>(x), x_sample_stride, x_token_stride}, {to<>(dx), dx_sample_stride, dx_token_stride},
                         dtype, samples, tokens, channels, to<float>(out), threads);
      },
      Released());
  m.def(
      "weight_scores",
      [](Pointer weight, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, Pointer norms,
         const std::vector<double>& powers, Pointer row_scores, Pointer column_scores, int threads) {
        cpu::weight_scores(matrix(weight, stride), dtype, rows, columns, to<const float>(norms), powers,
                           to<float>(row_scores), to<float>(column_scores), threads);
      },
      Released());
  m.def(
      "taylor_scores",
      [](Pointer weight, int64_t weight_stride, Dtype weight_dtype, Pointer gradient, int64_t gradient_stride,
         Dtype gradient_dtype, int64_t rows, int64_t columns, bool absolute_only, Pointer row_scores,
         Pointer column_scores, int threads) {
        cpu::taylor_scores(matrix(weight, weight_stride), weight_dtype, matrix(gradient, gradient_stride),
                           gradient_dtype, rows, columns, absolute_only, to<float>(row_scores),
                           to<float>(column_scores), threads);
      },
      Released());
  m.def(
      "block_moments",
      [](Pointer weight, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, Pointer norm, double power,
         Pointer thresholds, int64_t count, Pointer moments, Pointer above, Pointer histogram, int threads) {
        cpu::block_moments(matrix(weight, stride), dtype, rows, columns, to<const float>(norm), power,
                           to<const float>(thresholds), count, to<double>(moments), to<int64_t>(above),
                           to<int64_t>(histogram), threads);
      },
      Released());
}

void bind_selection(py::module_ m) {
  m.def(
      "kth_value",
      [](Pointer values, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, Pointer norm, int64_t k,
         Pointer out, int threads) {
        cpu::kth_value(scores(values, stride, dtype, rows, columns, norm), k, to<float>(out), threads);
      },
      Released());
  m.def(
      "select_mask",
      [](Pointer values, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, Pointer norm, int64_t k, bool bits,
         Pointer mask, int threads) {
        cpu::select_mask({scores(values, stride, dtype, rows, columns, norm), to<uint8_t>(mask)}, k, bits, threads);
      },
      Released());
  m.def(
      "kth_value_global",
      [](const std::vector<MatrixTuple>& matrices, Dtype dtype, int64_t k, Pointer value, int threads) {
        cpu::kth_value_global(matrices_of(matrices, dtype), k, to<float>(value), threads);
      },
      Released());
  m.def(
      "select_mask_global",
      [](const std::vector<MatrixTuple>& matrices, Dtype dtype, int64_t k, bool bits, int threads) {
        cpu::select_mask_global(matrices_of(matrices, dtype), k, bits, threads);
      },
      Released());
  m.def(
      "nm_mask",
      [](Pointer values, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, Pointer norm, int n, int m,
         Pointer mask, int threads) {
        cpu::nm_mask(scores(values, stride, dtype, rows, columns, norm), n, m, to<bool>(mask), threads);
      },
      Released());
  m.def(
      "nm_apply",
      [](Pointer values, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, Pointer norm, int n, int m,
         Pointer out, int threads) {
        cpu::nm_apply(scores(values, stride, dtype, rows, columns, norm), n, m, to<>(out), threads);
      },
      Released());
  m.def(
      "quantile_codes",
      [](Pointer values, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, Pointer norm, Pointer codes,
         int threads) {
        cpu::quantile_codes(scores(values, stride, dtype, rows, columns, norm), to<uint8_t>(codes), threads);
      },
      Released());
}

void bind_moves(py::module_ m) {
  m.def(
      "masked_copy",
      [](Pointer weight, int64_t stride, int element_bytes, int64_t rows, int64_t columns, Pointer codes,
         int64_t codes_stride, int level, Pointer out, int64_t out_stride, int threads) {
        cpu::masked_copy(matrix(weight, stride), element_bytes, rows, columns, to<const uint8_t>(codes), codes_stride,
                         level, to<>(out), out_stride, threads);
      },
      Released());
  m.def(
      "gather", [](const std::vector<GatherTuple>& parts, int threads) { cpu::gather(gathers_of(parts), threads); },
      Released());
}

#ifdef PRUNEENGINE_CUDA
void bind_cuda(py::module_ m) {
  m.def(
      "kth_value",
      [](Pointer values, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, Pointer norm, int64_t k,
         Pointer out, int device, Pointer stream) {
        cuda::kth_value(scores(values, stride, dtype, rows, columns, norm), k, to<float>(out), device, stream);
      },
      Released());
  m.def(
      "select_mask",
      [](Pointer values, int64_t stride, Dtype dtype, int64_t rows, int64_t columns, Pointer norm, int64_t k, bool bits,
         Pointer mask, int device, Pointer stream) {
        cuda::select_mask({scores(values, stride, dtype, rows, columns, norm), to<uint8_t>(mask)}, k, bits, device,
                          stream);
      },
      Released());
  m.def("global_scratch_bytes", &cuda::global_scratch_bytes);
  m.def(
      "kth_value_global",
      [](const std::vector<MatrixTuple>& matrices, Dtype dtype, int64_t k, Pointer value, Pointer scratch, int device,
         Pointer stream) {
        cuda::kth_value_global(matrices_of(matrices, dtype), k, to<float>(value), to<>(scratch), device, stream);
      },
      Released());
  m.def(
      "select_mask_global",
      [](const std::vector<MatrixTuple>& matrices, Dtype dtype, int64_t k, bool bits, Pointer scratch, int device,
         Pointer stream) {
        cuda::select_mask_global(matrices_of(matrices, dtype), k, bits, to<>(scratch), device, stream);
      },
      Released());
  m.def(
      "gather",
      [](const std::vector<GatherTuple>& parts, int device, Pointer stream) {
        cuda::gather(gathers_of(parts), device, stream);
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
  py::module_ cpu = m.def_submodule("cpu");
  bind_sums(cpu);
  bind_selection(cpu);
  bind_moves(cpu);
#ifdef PRUNEENGINE_CUDA
  bind_cuda(m.def_submodule("cuda"));
#endif
}
