// Columns named by an index. A warp owns a stretch of 512 output bytes and several rows: where its columns are one
// aligned run (kept attention heads) it copies 16 bytes a thread, else neighbouring threads read neighbouring columns.
#include <algorithm>

#include "common.cuh"

namespace pruneengine::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;
constexpr int kRows = 8;  // rows a warp: they share one reading of the index
constexpr int kWordBytes = 16;

template <class T>
__global__ void __launch_bounds__(kWarp* kWarps)
    gather_columns_kernel(const T* __restrict__ weight, int64_t stride, int64_t rows, int64_t bound,
                          const int64_t* __restrict__ index, int64_t kept, T* __restrict__ out, int64_t out_stride,
                          bool aligned) {
  constexpr int kPerThread = kWordBytes / sizeof(T);
  constexpr int64_t kStretch = kWarp * kPerThread;
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y) * kStretch;
  if (begin >= kept) return;

  // columns[i] is output begin + i * kWarp + lane: consecutive lanes take consecutive outputs.
  uint32_t columns[kPerThread];
  const int64_t first = index[begin];
  bool run = begin + kStretch <= kept;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t offset = i * kWarp + threadIdx.x;
    const int64_t column = begin + offset < kept ? index[begin + offset] : 0;
    if (column < 0 || column >= bound) __trap();
    run = run && column == first + offset;
    columns[i] = static_cast<uint32_t>(column);
  }
  const bool copy = __all_sync(0xffffffffu, run) && aligned && first % kPerThread == 0;

  for (int64_t band = blockIdx.y; band * kRows < rows; band += gridDim.y) {
    const int64_t end = min((band + 1) * kRows, rows);
    for (int64_t row = band * kRows; row < end; ++row) {
      const T* source = weight + row * stride;
      T* target = out + row * out_stride + begin;
      if (copy) {
        const int64_t offset = static_cast<int64_t>(threadIdx.x) * kPerThread;
        *reinterpret_cast<uint4*>(target + offset) = *reinterpret_cast<const uint4*>(source + first + offset);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        const int64_t offset = i * kWarp + threadIdx.x;
        if (begin + offset < kept) target[offset] = source[columns[i]];
      }
    }
  }
}

template <class T>
void launch(Matrix weight, int64_t rows, int64_t bound, const int64_t* index, int64_t kept, void* out,
            int64_t out_stride, cudaStream_t stream) {
  constexpr int64_t kBlock = static_cast<int64_t>(kWarp) * kWarps * kWordBytes / sizeof(T);
  const uint64_t bits = reinterpret_cast<uintptr_t>(weight.data) | reinterpret_cast<uintptr_t>(out) |
                        weight.stride * sizeof(T) | out_stride * sizeof(T);
  const dim3 blocks((kept + kBlock - 1) / kBlock, std::min<int64_t>((rows + kRows - 1) / kRows, 65535));
  gather_columns_kernel<T><<<blocks, dim3(kWarp, kWarps), 0, stream>>>(static_cast<const T*>(weight.data),
                                                                       weight.stride, rows, bound, index, kept,
                                                                       static_cast<T*>(out), out_stride,
                                                                       bits % kWordBytes == 0);
}

}  // namespace

void gather_columns(Matrix weight, int element_bytes, int64_t rows, int64_t bound, const int64_t* index, int64_t kept,
                    void* out, int64_t out_stride, int device, uintptr_t stream) {
  if (kept == 0 || rows == 0) return;
  if (bound > UINT32_MAX) throw std::invalid_argument("gather_columns: more than 2^32 columns");
  const cudaStream_t queue = to_stream(stream);
  launch_on(device, "gather_columns", [&] {
    switch (element_bytes) {
      case 1: return launch<uint8_t>(weight, rows, bound, index, kept, out, out_stride, queue);
      case 2: return launch<uint16_t>(weight, rows, bound, index, kept, out, out_stride, queue);
      case 4: return launch<uint32_t>(weight, rows, bound, index, kept, out, out_stride, queue);
      case 8: return launch<uint64_t>(weight, rows, bound, index, kept, out, out_stride, queue);
    }
  });
}

}  // namespace pruneengine::cuda
