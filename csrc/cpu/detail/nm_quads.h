// Groups of four bfloat16 scores with a norm, as 2:4 sparsity by Wanda's metric has them: eight groups at a time, one
// member of each in a vector.
#pragma once

#include <vector>

#include "keys.h"

namespace pruneengine::cpu {

// The norm of a matrix in the order in which its members meet the vectors; empty where scores have no such form.
class QuadNorm {
 public:
  explicit QuadNorm(const Scores& scores);

 private:
  friend int64_t mark_quads(const Segment& segment, const QuadNorm& norm, int dropped, uint8_t* mask);

  const float* first_;  // of the norm as it came
  std::vector<float> ordered_;
};

// Marks the `dropped` smallest of every four; returns how many columns it dealt with, from the first.
int64_t mark_quads(const Segment& segment, const QuadNorm& norm, int dropped, uint8_t* mask);

}  // namespace pruneengine::cpu
