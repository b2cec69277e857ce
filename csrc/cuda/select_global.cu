// The k-th smallest score of many matrices and their masks of exactly k smallest, by radix select: a launch over all
// matrices per digit, and one block that picks the digit, without a look from the host.
#include <algorithm>

#include "detail/block_scan.cuh"
#include "detail/select_global.cuh"

namespace pruneengine::cuda {
namespace {

using Wide = unsigned long long;

constexpr int kTableEntries = 60;  // within 4 KB of kernel parameters
constexpr int kOneBlock = 1024;  // threads where a single block works

struct TablePart {
  Scored entries[kTableEntries];
  int count;
};

// The table travels as kernel parameters: unlike a copy from the host's memory that also holds for a captured graph,
// which is replayed when that memory is gone.
__global__ void __launch_bounds__(kTableEntries)
    write_table_kernel(const __grid_constant__ TablePart part, Scored* __restrict__ table) {
  if (threadIdx.x < part.count) table[threadIdx.x] = part.entries[threadIdx.x];
}

__global__ void __launch_bounds__(kOneBlock) start_kernel(Search* search, Wide k) {
  for (int i = threadIdx.x; i < kGlobalBins; i += kOneBlock) search->bins[i] = 0;
  if (threadIdx.x == 0) {
    search->key = 0;
    search->wanted = k;
  }
}

template <class Source>
__global__ void __launch_bounds__(kChunkThreads, 4)
    count_kernel(const __grid_constant__ Chunks chunks, Search* search, int shift, int width) {
  __shared__ unsigned bins[kGlobalBins];
  for (int i = threadIdx.x; i < kGlobalBins; i += kChunkThreads) bins[i] = 0;
  const uint32_t key = search->key;
  __syncthreads();
  const auto count = [&](const Scored&, uint32_t columns, int64_t, uint32_t, const uint32_t(&keys)[kCell]) {
    count_digits(columns, keys, key, shift, width, bins);
  };
  walk_chunk<Source>(chunks, count);
  __syncthreads();
  for (int i = threadIdx.x; i < 1 << width; i += kChunkThreads) {
    if (bins[i] != 0) atomicAdd(&search->bins[i], static_cast<Wide>(bins[i]));
    if (shift == Source::kUnused) search->last_counts[blockIdx.x][i] = bins[i];
  }
}

// One block. Leaves the bins empty for the next digit.
__global__ void __launch_bounds__(kOneBlock) pick_kernel(Search* search, int shift) {
  __shared__ Wide warp_sums[kOneBlock / kWarp];
  __shared__ Digit<Wide> found;
  const Wide wanted = search->wanted;
  const Digit<Wide> digit = find_digit<kOneBlock, kGlobalBins>(search->bins, wanted, warp_sums, found);
  for (int i = threadIdx.x; i < kGlobalBins; i += kOneBlock) search->bins[i] = 0;
  if (threadIdx.x == 0) {
    search->key |= digit.value << shift;
    search->wanted = wanted - digit.before;
  }
}

template <class Source>
__global__ void value_kernel(const Search* search, Dtype dtype, float* value) {
  *value = Source::score(search->key, dtype);
}

template <class Source>
__device__ __forceinline__ uint32_t last_digit(uint32_t key) {
  constexpr int kWidth = Source::kBits % kGlobalDigitBits;
  static_assert(1 << kWidth <= kLastBins, "the table of a chunk's counts holds the last digit");
  return key >> Source::kUnused & ((1u << kWidth) - 1);
}

// One block: how many ties lie in the chunks before each.
template <class Source>
__global__ void __launch_bounds__(kOneBlock) scan_kernel(Search* search, int chunks) {
  __shared__ Wide warp_sums[kOneBlock / kWarp];
  constexpr int kEach = kChunks / kOneBlock;
  const uint32_t digit = last_digit<Source>(search->key);
  Wide ties[kEach], sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int chunk = threadIdx.x * kEach + i;
    ties[i] = chunk < chunks ? search->last_counts[chunk][digit] : 0;
    sum += ties[i];
  }
  Wide total;
  Wide before = block_prefix<kOneBlock>(sum, warp_sums, total);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    search->ties_before[threadIdx.x * kEach + i] = before;
    before += ties[i];
  }
}

template <class Source>
__global__ void __launch_bounds__(kChunkThreads, 3)
    mark_kernel(const __grid_constant__ Chunks chunks, const Search* __restrict__ search, bool bits) {
  __shared__ unsigned warp_sums[kChunkThreads / kWarp];
  const uint32_t key = search->key;
  const int64_t wanted = search->wanted - search->ties_before[blockIdx.x];  // of the ties from this chunk on
  const bool some = wanted > 0 && wanted < search->last_counts[blockIdx.x][last_digit<Source>(key)];
  int64_t ties_before = 0;  // in this chunk
  walk_chunk<Source>(chunks, [&](const Scored& matrix, uint32_t columns, int64_t row, uint32_t cell,
                                 const uint32_t(&keys)[kCell]) {
    Compared compared = compare(columns, keys, key);
    if (some) {  // at most one chunk is so; its ties are ranked in order
      unsigned total;
      const unsigned count = __popc(compared.tied);
      const int64_t rank = ties_before + block_prefix<kChunkThreads>(count, warp_sums, total);
      compared.tied = lowest(compared.tied, wanted - rank);
      ties_before += total;
    } else if (wanted <= 0) {
      compared.tied = 0;
    }
    if (columns != 0) write_cell(matrix, row, cell, columns, compared.below | compared.tied, bits);
  });
}

Chunks write_table(const std::vector<MaskedScores>& matrices, Scored* table, cudaStream_t stream) {
  Chunks chunks = {table, static_cast<int>(matrices.size()), 0, 0};
  for (size_t begin = 0; begin < matrices.size(); begin += kTableEntries) {
    TablePart part;
    part.count = static_cast<int>(std::min<size_t>(kTableEntries, matrices.size() - begin));
    for (int i = 0; i < part.count; ++i) {
      const MaskedScores& matrix = matrices[begin + i];
      part.entries[i] = scored(matrix, chunks.cells);
      chunks.cells += matrix.scores.rows * part.entries[i].cells;
    }
    launch(write_table_kernel, 1, kTableEntries, 0, stream, part, table + begin);
  }
  chunks.size = std::max(kSmallestChunk, divide_up(chunks.cells, kChunks));
  return chunks;
}

// Finds the k-th key; what is to be done with it is left to `finish(source, chunks, search)`.
template <class Finish>
void search_all(const std::vector<MaskedScores>& matrices, int64_t k, void* scratch, cudaStream_t stream,
                Finish finish) {
  Search* search = static_cast<Search*>(scratch);
  bool normed = false;
  for (const MaskedScores& matrix : matrices) normed = normed || matrix.scores.norm != nullptr;
  const Chunks chunks = write_table(matrices, table_in(scratch), stream);
  launch(start_kernel, 1, kOneBlock, 0, stream, search, static_cast<Wide>(k));
  with_source(matrices[0].scores.dtype, normed, [&](auto source) {
    using Source = decltype(source);
    for (int done = 0; done < Source::kBits; done += kGlobalDigitBits) {
      const int width = std::min(kGlobalDigitBits, Source::kBits - done), shift = 32 - done - width;
      launch(count_kernel<Source>, chunks.count(), kChunkThreads, 0, stream, chunks, search, shift, width);
      launch(pick_kernel, 1, kOneBlock, 0, stream, search, shift);
    }
    finish(source, chunks, search);
  });
}

}  // namespace

int64_t global_scratch_bytes(int64_t count) {
  return divide_up(sizeof(Search), 16) * 16 + count * static_cast<int64_t>(sizeof(Scored));
}

void kth_value_global(const std::vector<MaskedScores>& matrices, int64_t k, float* value, void* scratch, int device,
                      uintptr_t stream) {
  const cudaStream_t queue = to_stream(stream);
  launch_on(device, "kth_value_global", [&] {
    search_all(matrices, k, scratch, queue, [&](auto source, const Chunks&, const Search* search) {
      launch(value_kernel<decltype(source)>, 1, 1, 0, queue, search, matrices[0].scores.dtype, value);
    });
  });
}

void select_mask_global(const std::vector<MaskedScores>& matrices, int64_t k, bool bits, void* scratch, int device,
                        uintptr_t stream) {
  const cudaStream_t queue = to_stream(stream);
  launch_on(device, "select_mask_global", [&] {
    if (k == 0) {
      for (const MaskedScores& matrix : matrices) {
        const int64_t row_bytes = bits ? divide_up(matrix.scores.columns, kCell) : matrix.scores.columns;
        const int64_t bytes = matrix.scores.rows * row_bytes;
        if (bytes > 0) check(cudaMemsetAsync(matrix.mask, 0, bytes, queue), "select_mask_global");
      }
      return;
    }
    search_all(matrices, k, scratch, queue, [&](auto source, const Chunks& chunks, Search* search) {
      using Source = decltype(source);
      launch(scan_kernel<Source>, 1, kOneBlock, 0, queue, search, static_cast<int>(chunks.count()));
      launch(mark_kernel<Source>, chunks.count(), kChunkThreads, 0, queue, chunks, search, bits);
    });
  });
}

}  // namespace pruneengine::cuda
