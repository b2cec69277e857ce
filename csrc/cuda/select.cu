// The k-th smallest score of each row and the mask of exactly k smallest, by radix select: one block a row.
//
// The row is read once: its keys stay in shared memory where they fit. From the top, count the digits of the keys that
// agree so far and keep the digit that holds the k-th. A first digit of 12 bits spreads even the exponents of a normal
// distribution over enough bins that the threads of a warp seldom meet; short rows cannot pay for so many bins.
#include <algorithm>

#include "detail/block_scan.cuh"
#include "detail/cells.cuh"

namespace pruneengine::cuda {
namespace {

constexpr int64_t kShortRow = 2048;

struct Rows {
  Scored scores;
  int64_t rows;
  uint32_t k;
  float* values;  // may be null; so may be the mask
  Dtype dtype;
  bool bits;
  bool cached;  // the keys of a row fit into shared memory
};

template <class Source, int kThreads, int kDigitBits>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads) select_rows_kernel(const __grid_constant__ Rows a) {
  using Stored = typename Source::Stored;
  constexpr int kBins = 1 << kDigitBits;
  extern __shared__ uint4 memory[];
  __shared__ unsigned bins[kBins], warp_sums[kThreads / kWarp];
  __shared__ Digit<unsigned> found;
  Cell<Stored>* cache = reinterpret_cast<Cell<Stored>*>(memory);

  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    // A thread reads back only what it has stored itself.
    const auto each_cell = [&](auto use) {
      if (!a.cached) return walk<Source, kThreads>(a.scores, row, 0, a.scores.cells, use);
      for (uint32_t begin = 0; begin < a.scores.cells; begin += kThreads) {
        const uint32_t cell = begin + threadIdx.x;
        const bool mine = cell < a.scores.cells;
        const Cell<Stored> stored = cache[mine ? cell : 0];
        uint32_t keys[kCell];
#pragma unroll
        for (int i = 0; i < kCell; ++i) keys[i] = static_cast<uint32_t>(stored.at[i]) << Source::kUnused;
        use(mine ? columns_of(a.scores, cell) : 0u, row, cell, keys);
      }
    };

    uint32_t key = 0;
    unsigned wanted = a.k;  // of the keys that agree with `key` so far
    unsigned ties = 0;
    for (int done = 0; done < Source::kBits; done += kDigitBits) {
      const int width = min(kDigitBits, Source::kBits - done), shift = 32 - done - width;
      for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
      __syncthreads();
      const auto count = [&](uint32_t columns, int64_t, uint32_t, const uint32_t(&keys)[kCell]) {
        count_digits(columns, keys, key, shift, width, bins);
      };
      if (done > 0) {
        each_cell(count);
      } else {
        walk<Source, kThreads>(a.scores, row, 0, a.scores.cells,
                               [&](uint32_t columns, int64_t, uint32_t cell, const uint32_t(&keys)[kCell]) {
                                 if (a.cached && columns != 0) {
                                   Cell<Stored> stored;
#pragma unroll
                                   for (int i = 0; i < kCell; ++i) stored.at[i] = keys[i] >> Source::kUnused;
                                   cache[cell] = stored;
                                 }
                                 count(columns, row, cell, keys);
                               });
      }
      __syncthreads();
      const Digit<unsigned> digit = find_digit<kThreads, kBins>(bins, wanted, warp_sums, found);
      key |= digit.value << shift;
      wanted -= digit.before;
      ties = digit.here;
    }

    if (a.values != nullptr && threadIdx.x == 0) a.values[row] = Source::score(key, a.dtype);
    if (a.scores.mask != nullptr) {
      unsigned ties_before = 0;
      each_cell([&](uint32_t columns, int64_t, uint32_t cell, const uint32_t(&keys)[kCell]) {
        Compared compared = compare(columns, keys, key);
        if (wanted < ties) {  // of ties the lowest columns go first
          unsigned total;
          const unsigned count = __popc(compared.tied);
          const unsigned rank = ties_before + block_prefix<kThreads>(count, warp_sums, total);
          compared.tied = lowest(compared.tied, static_cast<int64_t>(wanted) - rank);
          ties_before += total;
        }
        if (columns != 0) write_cell(a.scores, row, cell, columns, compared.below | compared.tied, a.bits);
      });
    }
    __syncthreads();  // the next row writes what others may still read
  }
}

template <class Source, int kThreads, int kDigitBits>
void launch_rows(Rows a, int device, const char* what, cudaStream_t stream) {
  const auto kernel = select_rows_kernel<Source, kThreads, kDigitBits>;
  int available;
  check(cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), what);
  const int64_t limit = available - (int64_t{sizeof(unsigned)} << kDigitBits) - 1024;  // beside the bins and the sums
  int64_t bytes = a.scores.cells * static_cast<int64_t>(sizeof(Cell<typename Source::Stored>));
  a.cached = bytes <= limit;
  if (!a.cached) bytes = 0;
  // Always the same limit: two threads may launch the same kernel for rows of different lengths.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(limit)), what);
  launch(kernel, std::min<int64_t>(a.rows, INT32_MAX), kThreads, bytes, stream, a);
}

void select_rows(const MaskedScores& matrix, int64_t k, float* values, bool bits, int device, const char* what,
                 cudaStream_t stream) {
  const Scores& scores = matrix.scores;
  Rows a = {};
  a.scores = scored(matrix, 0);
  a.rows = scores.rows;
  a.k = static_cast<uint32_t>(k);
  a.values = values;
  a.dtype = scores.dtype;
  a.bits = bits;
  with_source(scores.dtype, scores.norm != nullptr, [&](auto source) {
    using Source = decltype(source);
    if (scores.columns <= kShortRow) return launch_rows<Source, 128, 8>(a, device, what, stream);
    launch_rows<Source, 256, 12>(a, device, what, stream);
  });
}

}  // namespace

void kth_value(Scores scores, int64_t k, float* values, int device, uintptr_t stream) {
  if (scores.rows == 0) return;
  launch_on(device, "kth_value",
            [&] { select_rows({scores, nullptr}, k, values, false, device, "kth_value", to_stream(stream)); });
}

void select_mask(MaskedScores matrix, int64_t k, bool bits, int device, uintptr_t stream) {
  const Scores& scores = matrix.scores;
  if (scores.rows == 0 || scores.columns == 0) return;
  launch_on(device, "select_mask", [&] {
    if (k > 0) return select_rows(matrix, k, nullptr, bits, device, "select_mask", to_stream(stream));
    const int64_t row_bytes = bits ? divide_up(scores.columns, kCell) : scores.columns;
    check(cudaMemsetAsync(matrix.mask, 0, scores.rows * row_bytes, to_stream(stream)), "select_mask");
  });
}

}  // namespace pruneengine::cuda
