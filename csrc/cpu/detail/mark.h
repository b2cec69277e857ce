// Masks from 16-bit keys and the border of a selection, as bools or bits.
#pragma once

#include <vector>

#include "keys.h"

namespace pruneengine::cpu {

// The score at the border of a selection: everything smaller is selected, and of its equals the first few.
struct Border {
  int16_t upper;
  int16_t lower;  // 0 where keys have no lower half
};

// The columns of a segment that share the upper half of the border, ascending, and their lower halves.
struct Ties {
  explicit Ties(int64_t columns) : columns(columns), lower(columns) {}

  std::vector<int32_t> columns;
  std::vector<int16_t> lower;
  int64_t count = 0;
};

void find_ties(const Segment& segment, bool has_lower_half, const int16_t* keys, int16_t upper, Ties& ties);

// How many of the ties equal the border.
int64_t count_equal(const Ties& ties, Border border);

// Marks what is smaller than the border, and the first `wanted` equals of it; returns how many equals were marked.
int64_t mark(const int16_t* keys, int64_t count, const Ties& ties, Border border, int64_t wanted, uint8_t* mask);

// bits: uint8 [ceil(count / 8)], the first of the mask in the lowest bit.
void pack_bits(const uint8_t* mask, int64_t count, uint8_t* bits);

}  // namespace pruneengine::cpu
