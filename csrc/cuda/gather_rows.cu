// Rows named by an index, copied in the widest words that alignment allows.
#include <algorithm>

#include "common.cuh"

namespace pruneengine::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kWordsPerThread = 8;

// Strides and the row length are in words.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(const Word* __restrict__ weight, int64_t stride, int64_t words, int64_t bound,
                       const int64_t* __restrict__ index, int64_t kept, Word* __restrict__ out, int64_t out_stride) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= kept) return;
  const int64_t from = index[row];
  if (from < 0 || from >= bound) __trap();
  const Word* source = weight + from * stride;
  Word* target = out + row * out_stride;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; i < words; i += step) {
    target[i] = source[i];
  }
}

template <class Word>
void launch(const char* weight, int64_t stride_bytes, int64_t row_bytes, int64_t bound, const int64_t* index,
            int64_t kept, char* out, int64_t out_stride_bytes, cudaStream_t stream) {
  const int64_t size = sizeof(Word), words = row_bytes / size;
  int wide = 1;
  while (wide < kThreads && wide < words) wide *= 2;
  const dim3 threads(wide, kThreads / wide);
  const int64_t pieces = (words + wide * kWordsPerThread - 1) / (wide * kWordsPerThread);
  const dim3 blocks((kept + threads.y - 1) / threads.y, std::min<int64_t>(pieces, 1024));
  gather_rows_kernel<Word><<<blocks, threads, 0, stream>>>(reinterpret_cast<const Word*>(weight), stride_bytes / size,
                                                           words, bound, index, kept, reinterpret_cast<Word*>(out),
                                                           out_stride_bytes / size);
}

}  // namespace

void gather_rows(Matrix weight, int element_bytes, int64_t columns, int64_t bound, const int64_t* index, int64_t kept,
                 void* out, int64_t out_stride, int device, uintptr_t stream) {
  if (kept == 0 || columns == 0) return;
  const char* from = static_cast<const char*>(weight.data);
  char* to = static_cast<char*>(out);
  const int64_t stride = weight.stride * element_bytes, to_stride = out_stride * element_bytes;
  const int64_t bytes = columns * element_bytes;
  const uint64_t bits = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) | stride | to_stride | bytes;
  const cudaStream_t queue = to_stream(stream);
  launch_on(device, "gather_rows", [&] {
    if (bits % 16 == 0) return launch<uint4>(from, stride, bytes, bound, index, kept, to, to_stride, queue);
    if (bits % 8 == 0) return launch<uint2>(from, stride, bytes, bound, index, kept, to, to_stride, queue);
    if (bits % 4 == 0) return launch<uint32_t>(from, stride, bytes, bound, index, kept, to, to_stride, queue);
    if (bits % 2 == 0) return launch<uint16_t>(from, stride, bytes, bound, index, kept, to, to_stride, queue);
    launch<uint8_t>(from, stride, bytes, bound, index, kept, to, to_stride, queue);
  });
}

}  // namespace pruneengine::cuda
