// Kept rows and columns of many matrices in one launch.
#include "detail/gather.cuh"
#include "detail/gather_columns.cuh"
#include "detail/gather_rows.cuh"

namespace pruneengine::cuda {
namespace {

constexpr int64_t kMostCounted = UINT32_MAX - 4096;  // leaves room for the threads past the end of an axis

// Four blocks on a multiprocessor keep enough loads under way; left alone the compiler takes registers for two.
__global__ void __launch_bounds__(kGatherThreads, 4) gather_kernel(const __grid_constant__ Table table) {
  const int chosen = part_of(table, blockIdx.x);
  const Part& part = table.parts[chosen];
  const uint32_t block = blockIdx.x - part.first_block;
  const int bytes = table.word_bytes[chosen];
  if (table.axis[chosen] == Axis::rows) {
    switch (bytes) {
      case 1: return gather_rows_block<uint8_t>(part, block);
      case 2: return gather_rows_block<uint16_t>(part, block);
      case 4: return gather_rows_block<uint32_t>(part, block);
      case 8: return gather_rows_block<uint2>(part, block);
      default: return gather_rows_block<uint4>(part, block);
    }
  }
  const bool aligned = table.axis[chosen] == Axis::aligned_columns;
  switch (bytes) {
    case 1: return gather_columns_block<uint8_t>(part, block, aligned);
    case 2: return gather_columns_block<uint16_t>(part, block, aligned);
    case 4: return gather_columns_block<uint32_t>(part, block, aligned);
    default: return gather_columns_block<uint64_t>(part, block, aligned);
  }
}

// The largest power of two up to 16 that divides every address and stride the part touches.
int common_alignment(const Part& part, uint64_t row_bytes) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(part.data) | reinterpret_cast<uintptr_t>(part.out) |
                        static_cast<uint64_t>(part.stride) | static_cast<uint64_t>(part.out_stride) | row_bytes;
  int bytes = kWordBytes;
  while (bits % bytes != 0) bytes /= 2;
  return bytes;
}

uint32_t counted(int64_t count) {
  if (count > kMostCounted) throw std::invalid_argument("gather: an axis of " + std::to_string(count) + " is too long");
  return static_cast<uint32_t>(count);
}

// Adds the part to the table and returns how many blocks it takes.
int64_t add(Table& table, const Gather& gather, int64_t first_block) {
  Part& part = table.parts[table.count];
  const int size = gather.element_bytes;
  part.data = static_cast<const char*>(gather.data);
  part.index = gather.index;
  part.out = static_cast<char*>(gather.out);
  part.stride = gather.stride * size;
  part.out_stride = gather.out_stride * size;
  part.bound = counted(gather.bound);
  part.kept = counted(gather.kept);
  part.whole = counted(gather.other);
  part.first_block = static_cast<uint32_t>(first_block);
  const int place = table.count++;
  if (gather.axis == 1) {
    table.axis[place] = common_alignment(part, 0) == kWordBytes ? Axis::aligned_columns : Axis::columns;
    table.word_bytes[place] = size;
    return blocks_for_columns(gather.kept, gather.other, size);
  }
  const int64_t row_bytes = gather.other * size;
  const int word = common_alignment(part, row_bytes);
  part.whole = counted(row_bytes / word);
  table.axis[place] = Axis::rows;
  table.word_bytes[place] = word;
  return blocks_for_rows(gather.kept, part.whole);
}

}  // namespace

void gather(const std::vector<Gather>& parts, int device, uintptr_t stream) {
  Table table;
  table.count = 0;
  int64_t blocks = 0;
  const auto flush = [&] {
    if (blocks > 0) launch(gather_kernel, blocks, kGatherThreads, 0, to_stream(stream), table);
    table.count = 0;
    blocks = 0;
  };
  launch_on(device, "gather", [&] {
    for (const Gather& part : parts) {
      if (part.kept == 0 || part.other == 0) continue;
      if (table.count == kMaxParts) flush();
      blocks += add(table, part, blocks);
    }
    flush();
  });
}

}  // namespace pruneengine::cuda
