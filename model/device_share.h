// Weights that processes of one host hand on within GPU memory (CUDA IPC): no way over the host's memory in between.
//
// The giver keeps one copy beside its model and writes the next one over it, so what a taker finds may be newer than
// what it asked for: a generation before and after the copy tells, and the taker then takes another way. Memory that is
// given back under a taker's copy could be anything's: it stays as long as somebody holds it, which a taker has the
// giver do for it meanwhile (StreamWeightsRequest.device_generation). Without CUDA every call is FailedPrecondition.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "model/libtorch.h"

namespace rlhf::model {

// What a taker needs to know.
struct DeviceShareName {
  std::string handle;       // cudaIpcMemHandle_t
  uint64_t generation = 0;  // of the copy; never 0
};

// Memory that other processes open by its handle; given back with the object, on any thread.
class ShareableMemory {
 public:
  virtual ~ShareableMemory() = default;
  virtual const std::string& handle() const = 0;
  // Copies the tensors, one behind the other, and says then of which generation they are; no taker takes what is half
  // written. Returns when all of it is there.
  virtual absl::Status Write(const std::vector<torch::Tensor>& tensors, uint64_t generation) = 0;
};
// For so many bytes of tensors of this device.
using AllocateShareable =
    std::function<absl::StatusOr<std::unique_ptr<ShareableMemory>>(torch::Device device, uint64_t size)>;
// On that CUDA device. FailedPrecondition: it is none, or gives no handle. ResourceExhausted: more than half of what is
// free there.
absl::StatusOr<std::unique_ptr<ShareableMemory>> AllocateOnDevice(torch::Device device, uint64_t size);

// Put by one thread, Hold by any. Memory stays as long as this object, or until a larger copy comes; in both cases
// until the last that holds it lets go.
class DeviceShare {
 public:
  explicit DeviceShare(AllocateShareable allocate = AllocateOnDevice) : allocate_(std::move(allocate)) {}
  DeviceShare(const DeviceShare&) = delete;
  DeviceShare& operator=(const DeviceShare&) = delete;

  // Copies the tensors, contiguous ones of one device, one behind the other, in place of what was there; returns when
  // all of it is there. Errors are those of the allocation.
  absl::StatusOr<DeviceShareName> Put(const std::vector<torch::Tensor>& tensors);
  // The memory of that generation, for as long as it is kept; null when another has taken its place. The next copy is
  // written over it all the same.
  std::shared_ptr<const void> Hold(uint64_t generation) const;

 private:
  const AllocateShareable allocate_;
  torch::Device device_ = torch::kCPU;
  uint64_t capacity_ = 0, generation_ = 0;
  mutable absl::Mutex mu_;
  std::shared_ptr<ShareableMemory> memory_ ABSL_GUARDED_BY(mu_);
  uint64_t whole_ ABSL_GUARDED_BY(mu_) = 0;  // the generation that is there; 0: none is
};

// A copy of the `size` bytes of that generation, uint8 on `device`. The memory is open only meanwhile, and must be held
// by its owner as long. NotFound: another generation has taken its place. FailedPrecondition: this process cannot open
// the memory (another host, container or user, or a device that it cannot reach). Thread-safe.
absl::StatusOr<torch::Tensor> TakeShared(const DeviceShareName& name, uint64_t size, torch::Device device);

}  // namespace rlhf::model
