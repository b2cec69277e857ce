// A stretch of weights with some set to zero, as chosen by a byte each.
#pragma once

#include <cstdint>

namespace pruneengine::cpu {

// out = weight where codes >= level, else 0; element_bytes is 1, 2, 4 or 8; out may be the weight.
void copy_coded(const void* weight, int element_bytes, const uint8_t* codes, uint8_t level, int64_t count, void* out);

}  // namespace pruneengine::cpu
