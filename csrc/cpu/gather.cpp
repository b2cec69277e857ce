// Rows or columns named by an index, of one matrix or of all of a layer, copied into buffers that already exist.
#include <functional>
#include <vector>

#include "detail/gather_columns.h"
#include "detail/gather_rows.h"
#include "detail/pages.h"
#include "detail/parallel.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kTaskBytes = 1 << 18;

struct Job {  // one part, in blocks of its result's rows
  Blocks blocks;
  std::function<void(int64_t, int64_t)> rows;
};

template <class Part>
Job job_of(const Gather& part, int64_t rows, int64_t row_elements) {
  const int64_t row_bytes = std::max<int64_t>(1, row_elements * part.element_bytes);
  const Part gather(part);
  return {{rows, std::max<int64_t>(4, kTaskBytes / row_bytes / 4 * 4)},
          [gather](int64_t begin, int64_t end) { gather.rows(begin, end); }};
}

Job job_of(Gather part) {
  // A bias is a matrix of one row.
  const bool bias = part.axis == 0 && part.other == 1 && part.stride == 1 && part.out_stride == 1;
  if (part.axis == 0 && !bias) return job_of<RowGather>(part, part.kept, part.other);
  switch (part.element_bytes) {
    case 1: return job_of<ColumnGather<uint8_t>>(part, part.other, part.kept);
    case 2: return job_of<ColumnGather<uint16_t>>(part, part.other, part.kept);
    case 4: return job_of<ColumnGather<uint32_t>>(part, part.other, part.kept);
    default: return job_of<ColumnGather<uint64_t>>(part, part.other, part.kept);
  }
}

}  // namespace

void gather(const std::vector<Gather>& parts, int threads) {
  struct Task {
    const Job* job;
    int64_t block;
  };
  std::vector<Job> jobs;
  std::vector<Task> tasks;
  int64_t bytes = 0;
  for (const Gather& part : parts) {
    if (part.kept == 0 || part.other == 0) continue;
    jobs.push_back(job_of(part));
    bytes += part.kept * part.other * part.element_bytes;
    const int64_t rows = part.axis == 0 ? part.kept : part.other, width = part.axis == 0 ? part.other : part.kept;
    advise_large_pages(part.out, ((rows - 1) * part.out_stride + width) * part.element_bytes);
  }
  for (const Job& job : jobs) {
    for (int64_t block = 0; block < job.blocks.count(); ++block) tasks.push_back({&job, block});
  }
  parallel_for(static_cast<int64_t>(tasks.size()), useful_threads(bytes, threads), [&](int64_t task, int) {
    const auto& [job, block] = tasks[task];
    const int64_t begin = job->blocks.begin(block);
    job->rows(begin, begin + job->blocks.length(block));
  });
}

}  // namespace pruneengine::cpu
