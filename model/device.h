// The device that a process computes on, and what moves there.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/libtorch.h"

namespace rlhf::model {

// "cpu", "cuda" (the first) or "cuda:N". InvalidArgument for another text; FailedPrecondition for a device that this
// build or this machine lacks, with what it has.
absl::StatusOr<torch::Device> ParseDevice(const std::string& text);

// Memory of a CUDA device that no process uses, and what this one's allocator keeps unused, in bytes; none for the CPU,
// whose pages are given when they are touched.
std::optional<int64_t> FreeBytes(torch::Device device);
// Gives what the allocator keeps unused back to the device, for other processes and for larger blocks; nothing on the
// CPU.
void GiveBackUnused(torch::Device device);

// A tensor of the host's, there. To CUDA it goes through pinned memory: the copy is ordered before what is computed
// next, and the host does not wait for it.
torch::Tensor ToDevice(const torch::Tensor& host, torch::Device device);
torch::Tensor ToDevice(const std::vector<int64_t>& numbers, torch::Device device);

// Copies what lies in the host's memory, contiguous, into a tensor of the same type and size, in place. To CUDA, large
// ones go through two pinned buffers in turn, so that one fills while the other is on its way; the source is free on
// return.
void CopyInto(torch::Tensor target, const torch::Tensor& source);
// The bytes of a tensor, in the order of its elements, to `bytes`, which has room for them. From CUDA large contiguous
// ones come through pinned buffers likewise.
void CopyOut(const torch::Tensor& source, void* bytes);
// Contiguous in the host's memory; the tensor itself where it is.
torch::Tensor ToHost(const torch::Tensor& tensor);

// Before memory of the CPU is touched for the first time: huge pages for it, of whose faults and look-ups there are
// few. Advice only: where the kernel does not know it, nothing is lost.
void PreferHugePages(const torch::Tensor& tensor);

// What the kernels of the CPU serve.
inline bool IsFloatOnCpu(const torch::Tensor& x) {
  return x.device().is_cpu() && x.scalar_type() == torch::kFloat32;
}
inline bool IsFloatOrBf16OnCpu(const torch::Tensor& x) {
  return IsFloatOnCpu(x) || (x.device().is_cpu() && x.scalar_type() == torch::kBFloat16);
}

}  // namespace rlhf::model
