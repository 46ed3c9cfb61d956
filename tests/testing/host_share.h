// Memory that is opened by a handle, as a GPU's is between processes: the host's, for tests without one.
#pragma once

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "model/device_share.h"

namespace rlhf {

// Outlives the memory. Thread-safe.
class HostShare {
 public:
  model::AllocateShareable allocator() {
    return [this](torch::Device device, uint64_t size) -> absl::StatusOr<std::unique_ptr<model::ShareableMemory>> {
      if (!device.is_cpu()) return absl::FailedPreconditionError("expected tensors of the host");
      return std::make_unique<Memory>(this, size);
    };
  }
  // What was allocated and not given back.
  size_t alive() const {
    absl::MutexLock lock(&mu_);
    return open_.size();
  }
  // As model::TakeShared. What was given back cannot be opened.
  absl::StatusOr<torch::Tensor> Take(const model::DeviceShareName& name, uint64_t size) const {
    absl::MutexLock lock(&mu_);
    const auto found = open_.find(name.handle);
    if (found == open_.end()) return absl::FailedPreconditionError("no memory by this handle");
    if (found->second->generation != name.generation) return absl::NotFoundError("another generation");
    torch::Tensor copy = torch::empty({static_cast<int64_t>(size)}, torch::kByte);
    std::memcpy(copy.data_ptr(), found->second->bytes.data(), size);
    return copy;
  }

 private:
  struct Memory final : public model::ShareableMemory {
    Memory(HostShare* share, uint64_t size) : of(share), bytes(size) {
      absl::MutexLock lock(&of->mu_);
      name = absl::StrCat("memory ", ++of->made_);
      of->open_[name] = this;
    }
    ~Memory() override {
      absl::MutexLock lock(&of->mu_);
      of->open_.erase(name);
    }
    const std::string& handle() const override { return name; }
    absl::Status Write(const std::vector<torch::Tensor>& tensors, uint64_t now) override {
      absl::MutexLock lock(&of->mu_);
      size_t at = 0;
      for (const torch::Tensor& tensor : tensors) {
        if (tensor.nbytes() > bytes.size() - at) return absl::InternalError("more than was asked for");
        std::memcpy(bytes.data() + at, tensor.const_data_ptr(), tensor.nbytes());
        at += tensor.nbytes();
      }
      generation = now;
      return absl::OkStatus();
    }

    HostShare* const of;
    std::string name;
    std::vector<uint8_t> bytes;
    uint64_t generation = 0;
  };

  mutable absl::Mutex mu_;
  int made_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::string, Memory*> open_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rlhf
