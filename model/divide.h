// Work divided over LibTorch's threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include <ATen/Parallel.h>

namespace rlhf::model {

// Whether so many multiplications take longer than to wake threads.
inline bool WorthThreads(int64_t multiplications) {
  return multiplications >= 1 << 19 && at::get_num_threads() > 1 && !at::in_parallel_region();
}

// Rows of so many numbers that are work enough for a thread, where each number takes a few operations.
inline int64_t RowsTogether(int64_t width) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, width));
}

// fn(i) for i < count, each by the thread that is free: threads may be of unequal speed. Within such a thread, by it
// alone.
template <typename Fn>
void Divide(int64_t count, const Fn& fn) {
  const int64_t threads = at::in_parallel_region() ? 1 : std::min<int64_t>(at::get_num_threads(), count);
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) fn(i);
    return;
  }
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) fn(i);
  });
}

}  // namespace rlhf::model
