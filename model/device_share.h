// Weights that processes of one host hand on within GPU memory (CUDA IPC): no way over the host's memory in between.
//
// The giver keeps one copy beside its model and writes the next one over it, so what a taker finds may be newer than
// what it asked for: a generation before and after the copy tells, and the taker then takes another way. Without CUDA
// every call is FailedPrecondition.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/libtorch.h"

namespace rlhf::model {

// What a taker needs to know.
struct DeviceShareName {
  std::string handle;       // cudaIpcMemHandle_t
  uint64_t generation = 0;  // of the copy; never 0
};

// Not thread-safe. The memory stays as long as this object, and is given back and taken anew when a larger copy comes.
class DeviceShare {
 public:
  DeviceShare() = default;
  ~DeviceShare() { Free(); }
  DeviceShare(const DeviceShare&) = delete;
  DeviceShare& operator=(const DeviceShare&) = delete;

  // Copies the tensors, contiguous ones of one device, one behind the other, in place of what was there; returns when
  // all of it is there. ResourceExhausted: more than half of the device's free memory.
  absl::StatusOr<DeviceShareName> Put(const std::vector<torch::Tensor>& tensors);

 private:
  void Free();

  torch::Device device_ = torch::kCPU;
  void* memory_ = nullptr;  // a header, then the bytes
  uint64_t capacity_ = 0, generation_ = 0;
  std::string handle_;
};

// A copy of the `size` bytes of that generation, uint8 on `device`. The memory is open only meanwhile. NotFound:
// another generation has taken its place. FailedPrecondition: this process cannot open the memory (another host,
// container or user, or a device that it cannot reach). Thread-safe.
absl::StatusOr<torch::Tensor> TakeShared(const DeviceShareName& name, uint64_t size, torch::Device device);

}  // namespace rlhf::model
