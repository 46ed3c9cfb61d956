#include "model/device.h"

#include <algorithm>
#include <cstring>
#include <limits>

#ifdef RLHF_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#endif

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/large_memory.h"

namespace rlhf::model {

absl::StatusOr<torch::Device> ParseDevice(const std::string& text) {
  if (text == "cpu") return torch::Device(torch::kCPU);
  absl::string_view rest = text;
  int index = 0;
  if (!absl::ConsumePrefix(&rest, "cuda") ||
      !(rest.empty() || (absl::ConsumePrefix(&rest, ":") && absl::SimpleAtoi(rest, &index) && index >= 0 &&
                         index < std::numeric_limits<c10::DeviceIndex>::max()))) {
    return absl::InvalidArgumentError(absl::StrCat("expected the device cpu, cuda or cuda:N, found \"", text, "\""));
  }
#ifdef RLHF_CUDA
  const auto there = static_cast<int>(torch::cuda::device_count());
  if (index < there) return torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(index));
  return absl::FailedPreconditionError(absl::StrCat("device ", text, ": this process sees ", there,
                                                    " CUDA devices; check the driver (nvidia-smi) and "
                                                    "CUDA_VISIBLE_DEVICES, or use cpu"));
#else
  return absl::FailedPreconditionError(
      absl::StrCat("device ", text, ": this build has no CUDA: use the build of the preset cuda, or cpu"));
#endif
}

std::optional<int64_t> FreeBytes(torch::Device device) {
#ifdef RLHF_CUDA
  if (device.is_cuda()) {
    const c10::cuda::CUDAGuard guard(device);
    size_t free = 0, all = 0;
    const cudaError_t error = cudaMemGetInfo(&free, &all);
    TORCH_CHECK(error == cudaSuccess, "memory of ", device, ": ", cudaGetErrorString(error));
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(at::cuda::current_device());
    constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return static_cast<int64_t>(free) + stats.reserved_bytes[kAll].current - stats.allocated_bytes[kAll].current;
  }
#endif
  return std::nullopt;
}

void GiveBackUnused([[maybe_unused]] torch::Device device) {
#ifdef RLHF_CUDA
  if (device.is_cuda()) c10::cuda::CUDACachingAllocator::emptyCache();
#endif
}

torch::Tensor ToDevice(const torch::Tensor& host, torch::Device device) {
  if (device.is_cpu()) return host;
  // The pinned block is not given out again before the copy has been made.
  return host.pin_memory().to(device, /*non_blocking=*/true);
}

torch::Tensor ToDevice(const std::vector<int64_t>& numbers, torch::Device device) {
  return ToDevice(torch::tensor(numbers, torch::kInt64), device);
}

#ifdef RLHF_CUDA
namespace {

constexpr int64_t kChunk = int64_t{16} << 20;

// Bytes between the device and the host's pageable memory, a chunk at a time through two pinned buffers.
class Staged {
 public:
  Staged(const torch::Tensor& there, int64_t bytes)
      : guard_(there.device()),
        stream_(at::cuda::getCurrentCUDAStream(there.get_device())),
        there_(there.view({-1}).view(torch::kByte)),
        bytes_(bytes) {
    for (torch::Tensor& buffer : buffers_)
      buffer = torch::empty({std::min(kChunk, bytes)}, torch::TensorOptions().dtype(torch::kByte).pinned_memory(true));
  }
  void From(const char* host) {
    for (int64_t at = 0, turn = 0; at < bytes_; at += kChunk, turn = 1 - turn) {
      const int64_t count = std::min(kChunk, bytes_ - at);
      if (at >= 2 * kChunk) copied_[turn].synchronize();
      std::memcpy(buffers_[turn].data_ptr(), host + at, static_cast<size_t>(count));
      there_.narrow(0, at, count).copy_(buffers_[turn].narrow(0, 0, count), /*non_blocking=*/true);
      copied_[turn].record(stream_);
    }
  }
  void To(char* host) {
    const auto start = [&](int64_t at, int64_t turn) {
      if (at >= bytes_) return;
      const int64_t count = std::min(kChunk, bytes_ - at);
      buffers_[turn].narrow(0, 0, count).copy_(there_.narrow(0, at, count), /*non_blocking=*/true);
      copied_[turn].record(stream_);
    };
    start(0, 0);
    for (int64_t at = 0, turn = 0; at < bytes_; at += kChunk, turn = 1 - turn) {
      start(at + kChunk, 1 - turn);
      copied_[turn].synchronize();
      std::memcpy(host + at, buffers_[turn].data_ptr(), static_cast<size_t>(std::min(kChunk, bytes_ - at)));
    }
  }

 private:
  const c10::cuda::CUDAGuard guard_;
  const at::cuda::CUDAStream stream_;
  const torch::Tensor there_;
  const int64_t bytes_;
  torch::Tensor buffers_[2];
  at::cuda::CUDAEvent copied_[2];
};

// Below a quarter of a chunk, the driver's own staging does as well.
bool WorthStaging(const torch::Tensor& tensor) {
  return static_cast<int64_t>(tensor.nbytes()) >= kChunk / 4 && tensor.is_contiguous();
}

}  // namespace
#endif

void CopyInto(torch::Tensor target, const torch::Tensor& source) {
#ifdef RLHF_CUDA
  if (target.is_cuda() && source.is_cpu() && !source.is_pinned() && WorthStaging(source) && target.is_contiguous() &&
      target.scalar_type() == source.scalar_type() && target.sizes() == source.sizes()) {
    Staged(target, static_cast<int64_t>(source.nbytes())).From(static_cast<const char*>(source.data_ptr()));
    return;
  }
#endif
  target.copy_(source);
}

void CopyOut(const torch::Tensor& source, void* bytes) {
#ifdef RLHF_CUDA
  if (source.is_cuda() && WorthStaging(source)) {
    Staged(source.detach(), static_cast<int64_t>(source.nbytes())).To(static_cast<char*>(bytes));
    return;
  }
#endif
  const torch::Tensor host = source.detach().to(torch::kCPU).contiguous();
  std::memcpy(bytes, host.data_ptr(), host.nbytes());
}

torch::Tensor ToHost(const torch::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor.detach().contiguous();
  torch::Tensor host = torch::empty(tensor.sizes(), tensor.options().device(torch::kCPU).requires_grad(false));
  CopyOut(tensor, host.data_ptr());
  return host;
}

void PreferHugePages(const torch::Tensor& tensor) {
  if (!tensor.device().is_cpu()) return;
  auto* const begin = static_cast<char*>(tensor.data_ptr());
  AdviseHugePages(begin, begin + tensor.nbytes());
}

}  // namespace rlhf::model
