// The kept rows of a matrix; large results bypass the caches.
#pragma once

#include <algorithm>
#include <cstring>

#include "../../ops.h"
#include "stream.h"

namespace pruneengine::cpu {

constexpr int64_t kStreamedRows = int64_t{8} << 20;  // bytes that no second-level cache holds until they are used

class RowGather {
 public:
  explicit RowGather(const Gather& part)
      : part_(part),
        bytes_(part.other * part.element_bytes),
        streams_(part.kept * bytes_ >= kStreamedRows && can_stream()) {}

  void rows(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      char* to = static_cast<char*>(part_.out) + i * part_.out_stride * part_.element_bytes;
      const char* from = static_cast<const char*>(part_.data) + part_.index[i] * part_.stride * part_.element_bytes;
      if (streams_) {
        stream_copy(to, from, bytes_);
      } else {
        std::memcpy(to, from, bytes_);
      }
    }
    if (streams_) stream_fence();
  }

 private:
  Gather part_;
  int64_t bytes_;
  bool streams_;
};

}  // namespace pruneengine::cpu
