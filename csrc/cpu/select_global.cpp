// The k-th smallest score over many matrices, and the mask of exactly k smallest, in a few passes over their rows.
//
// The k-th key is read off a histogram of all upper halves, then one of the lower halves below that upper one. Counts
// are integers, so neither threads nor the order of tasks shows. For the mask, each task is told how many equals of the
// border lie before it.
#include <algorithm>
#include <utility>
#include <vector>

#include "detail/mark.h"
#include "detail/pages.h"
#include "detail/parallel.h"

namespace pruneengine::cpu {
namespace {

constexpr int64_t kTaskScores = 1 << 16;
constexpr int64_t kSegment = 1 << 13;  // columns whose keys stay in the first-level cache; a multiple of 8
constexpr int64_t kKeys = 1 << 16;

struct Task {  // consecutive rows, or a part of one that is long; tasks are in row-major order
  int64_t matrix;
  int64_t row;
  int64_t rows;
  int64_t begin;
  int64_t columns;
};

std::vector<Task> tasks_of(const std::vector<MaskedScores>& matrices) {
  std::vector<Task> tasks;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const auto [rows, columns] = std::pair{matrices[i].scores.rows, matrices[i].scores.columns};
    if (columns == 0) continue;
    const int64_t step = std::max<int64_t>(1, kTaskScores / columns);
    for (int64_t row = 0; row < rows; row += step) {
      for (int64_t begin = 0; begin < columns; begin += kTaskScores) {
        const int64_t part = std::min(kTaskScores, columns - begin);
        tasks.push_back({static_cast<int64_t>(i), row, std::min(step, rows - row), begin, part});
      }
    }
  }
  return tasks;
}

struct Scratch {  // of one thread
  Scratch() : keys(kSegment), ties(kSegment), mask(kSegment), histogram(kKeys) {}

  std::vector<int16_t> keys;
  Ties ties;
  std::vector<uint8_t> mask;
  std::vector<int64_t> histogram;
};

// One whose scores say what the keys of all are made of: an empty matrix has no norm to show.
const Scores& representative(const std::vector<MaskedScores>& matrices) {
  const auto normed = [](const MaskedScores& matrix) { return matrix.scores.norm != nullptr; };
  const auto found = std::find_if(matrices.begin(), matrices.end(), normed);
  return found == matrices.end() ? matrices.front().scores : found->scores;
}

int64_t bytes_of(const std::vector<MaskedScores>& matrices) {
  int64_t bytes = 0;
  for (const auto& [scores, mask] : matrices) bytes += 2 * scores.rows * scores.columns;
  return bytes;
}

class Selection {
 public:
  Selection(const std::vector<MaskedScores>& matrices, int64_t k, int threads)
      : matrices_(matrices), tasks_(tasks_of(matrices)), has_lower_half_(has_lower_half(representative(matrices))) {
    threads_ = useful_threads(bytes_of(matrices), threads);
    scratch_.resize(threads_);
    find(k);
  }

  float value() const { return score_of(representative(matrices_), border_.upper, border_.lower); }

  void mark_all(bool bits) {
    std::vector<int64_t> equals(tasks_.size());
    const bool all = wanted_ == equals_;
    if (!all) {
      each_segment([&](int64_t task, const Part& part, Scratch& scratch) {
        find_ties(part.segment, has_lower_half_, scratch.keys.data(), border_.upper, scratch.ties);
        equals[task] += count_equal(scratch.ties, border_);
      });
    }
    // From here on: how many equals each task may still mark.
    int64_t before = 0;
    for (int64_t& task : equals) before += std::exchange(task, all ? wanted_ : std::max<int64_t>(0, wanted_ - before));
    each_segment([&](int64_t task, const Part& part, Scratch& scratch) {
      find_ties(part.segment, has_lower_half_, scratch.keys.data(), border_.upper, scratch.ties);
      uint8_t* mask = bits ? scratch.mask.data() : part.mask(false);
      equals[task] -=
          mark(scratch.keys.data(), part.segment.count, scratch.ties, border_, equals[task], mask);
      if (bits) pack_bits(mask, part.segment.count, part.mask(true));
    });
  }

 private:
  struct Part {
    const MaskedScores& matrix;
    int64_t row;
    int64_t begin;
    Segment segment;

    uint8_t* mask(bool bits) const {
      const int64_t columns = matrix.scores.columns;
      return matrix.mask + (bits ? row * ((columns + 7) / 8) + begin / 8 : row * columns + begin);
    }
  };

  // Calls body(task, part, scratch) with the upper keys made; the parts of a task in order, tasks in any order.
  template <class Body>
  void each_segment(Body body) {
    parallel_for(tasks_.size(), threads_, [&](int64_t index, int thread) {
      const Task& task = tasks_[index];
      const MaskedScores& matrix = matrices_[task.matrix];
      for (int64_t row = task.row; row < task.row + task.rows; ++row) {
        for (int64_t begin = task.begin; begin < task.begin + task.columns; begin += kSegment) {
          const int64_t count = std::min(kSegment, task.begin + task.columns - begin);
          const Part part{matrix, row, begin, segment_of(matrix.scores, row, begin, count)};
          upper_keys(part.segment, scratch_[thread].keys.data());
          body(index, part, scratch_[thread]);
        }
      }
    });
  }

  struct Place {
    int16_t key;
    int64_t below;
    int64_t equals;
  };

  // Where the k-th lies in the sum of the threads' histograms, which are cleared.
  Place kth_of_histograms(int64_t k) {
    std::vector<int64_t> total(kKeys);
    for (Scratch& scratch : scratch_) {
      for (int64_t i = 0; i < kKeys; ++i) total[i] += std::exchange(scratch.histogram[i], 0);
    }
    int64_t key = 0, below = 0;
    while (below + total[key] < k) below += total[key++];
    return {static_cast<int16_t>(key + INT16_MIN), below, total[key]};
  }

  void find(int64_t k) {
    each_segment([&](int64_t, const Part& part, Scratch& scratch) {
      for (int64_t i = 0; i < part.segment.count; ++i) ++scratch.histogram[scratch.keys[i] - INT16_MIN];
    });
    const Place upper = kth_of_histograms(k);
    border_ = {upper.key, 0};
    wanted_ = k - upper.below;
    equals_ = upper.equals;
    if (!has_lower_half_) return;
    each_segment([&](int64_t, const Part& part, Scratch& scratch) {
      find_ties(part.segment, true, scratch.keys.data(), upper.key, scratch.ties);
      for (int64_t i = 0; i < scratch.ties.count; ++i) ++scratch.histogram[scratch.ties.lower[i] - INT16_MIN];
    });
    const Place lower = kth_of_histograms(wanted_);
    border_.lower = lower.key;
    wanted_ -= lower.below;
    equals_ = lower.equals;
  }

  const std::vector<MaskedScores>& matrices_;
  const std::vector<Task> tasks_;
  const bool has_lower_half_;
  int threads_;
  std::vector<Scratch> scratch_;
  Border border_;
  int64_t wanted_;  // how many equals of the border are among the k
  int64_t equals_;  // how many there are
};

}  // namespace

void kth_value_global(const std::vector<MaskedScores>& matrices, int64_t k, float* value, int threads) {
  *value = Selection(matrices, k, threads).value();
}

void select_mask_global(const std::vector<MaskedScores>& matrices, int64_t k, bool bits, int threads) {
  for (const auto& [scores, mask] : matrices) {
    const int64_t bytes = scores.rows * (bits ? (scores.columns + 7) / 8 : scores.columns);
    advise_large_pages(mask, bytes);
    if (k == 0) std::fill(mask, mask + bytes, 0);
  }
  if (k == 0) return;
  Selection(matrices, k, threads).mark_all(bits);
}

}  // namespace pruneengine::cpu
