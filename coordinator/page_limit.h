// Where a page of a listing ends: at so many items or, where these are long, at so many bytes, which a message carries
// with room to spare (64 MiB, common/rpc_server.h).
#pragma once

#include <cstddef>

namespace rlhf::coordinator {

inline constexpr size_t kPageBytes = 16 << 20;

class PageLimit {
 public:
  explicit PageLimit(int items, size_t bytes = kPageBytes) : items_(items), bytes_(bytes) {}
  // Whether an item of so many bytes belongs to the page, and counts it; the first always does, however long.
  bool Take(size_t bytes) {
    if (taken_ >= items_ || (taken_ > 0 && bytes > bytes_)) return false;
    ++taken_;
    bytes_ -= bytes < bytes_ ? bytes : bytes_;
    return true;
  }

 private:
  const int items_;
  size_t bytes_;  // left
  int taken_ = 0;
};

}  // namespace rlhf::coordinator
