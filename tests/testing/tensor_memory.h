// Counts the bytes of tensors that live on the CPU, of those that one thread made since counting began.
//
//   const auto memory = std::make_shared<TensorMemory>();
//   const c10::DebugInfoGuard counting(c10::DebugInfoKind::PROFILER_STATE, memory);
#pragma once

#include "model/libtorch.h"

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

namespace rlhf {

class TensorMemory : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void* block, int64_t size, size_t allocated, size_t reserved, c10::Device device) override {
    live_ += size;  // negative when a block is freed
    if (live_ > peak_) peak_ = live_;
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t live() const { return live_; }
  int64_t peak() const { return peak_; }  // the most that were alive at once

 private:
  int64_t live_ = 0, peak_ = 0;
};

}  // namespace rlhf
