#include "model/device_share.h"

#ifdef RLHF_CUDA
#include <cstring>

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#endif

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/status_util.h"

namespace rlhf::model {

absl::StatusOr<DeviceShareName> DeviceShare::Put(const std::vector<torch::Tensor>& tensors) {
  uint64_t size = 0;
  for (const torch::Tensor& tensor : tensors) {
    if (!tensor.is_contiguous() || tensor.device() != tensors.front().device())
      return absl::FailedPreconditionError("weights in GPU memory: expected contiguous tensors of one device");
    size += tensor.nbytes();
  }
  if (size == 0) return absl::FailedPreconditionError("weights in GPU memory: nothing to share");
  const torch::Device device = tensors.front().device();
  std::shared_ptr<ShareableMemory> memory;
  {
    absl::MutexLock lock(&mu_);
    whole_ = 0;
    if (device == device_ && size <= capacity_) {
      memory = memory_;
    } else {
      memory.swap(memory_);
    }
  }
  if (device != device_ || size > capacity_) {
    capacity_ = 0;
    memory.reset();  // before there is a second one, where nobody holds it
    RLHF_ASSIGN_OR_RETURN(memory, allocate_(device, size));
    device_ = device;
    capacity_ = size;
    absl::MutexLock lock(&mu_);
    memory_ = memory;
  }
  RLHF_RETURN_IF_ERROR(memory->Write(tensors, ++generation_));
  absl::MutexLock lock(&mu_);
  whole_ = generation_;
  return DeviceShareName{memory->handle(), generation_};
}

std::shared_ptr<const void> DeviceShare::Hold(uint64_t generation) const {
  absl::MutexLock lock(&mu_);
  return generation != 0 && generation == whole_ ? memory_ : nullptr;
}

#ifdef RLHF_CUDA
namespace {

constexpr uint64_t kHeader = 256;  // the generation, and room so that the bytes are aligned
// A handle opens the whole block that the driver took memory from: it holds nothing else's bytes.
constexpr uint64_t kBlock = uint64_t{2} << 20;

// Clears the error, which is this call's alone: the next one shall not report it.
absl::Status CudaStatus(absl::StatusCode code, cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  return {code, absl::StrCat("weights in GPU memory: ", what, ": ", cudaGetErrorString(error))};
}
#define RLHF_CUDA_OR(code, call)                                                                                 \
  if (const absl::Status status_of_call = CudaStatus(absl::StatusCode::code, call, #call); !status_of_call.ok()) \
  return status_of_call

// The generation is what the stream has come to.
absl::Status WriteGeneration(void* memory, uint64_t generation, cudaStream_t stream) {
  RLHF_CUDA_OR(kInternal, cudaMemcpyAsync(memory, &generation, sizeof(generation), cudaMemcpyHostToDevice, stream));
  RLHF_CUDA_OR(kInternal, cudaStreamSynchronize(stream));
  return absl::OkStatus();
}
absl::StatusOr<uint64_t> ReadGeneration(const void* memory, cudaStream_t stream) {
  uint64_t generation = 0;
  RLHF_CUDA_OR(kInternal, cudaMemcpyAsync(&generation, memory, sizeof(generation), cudaMemcpyDeviceToHost, stream));
  RLHF_CUDA_OR(kInternal, cudaStreamSynchronize(stream));
  return generation;
}

class CudaMemory final : public ShareableMemory {
 public:
  static absl::StatusOr<std::unique_ptr<ShareableMemory>> Allocate(torch::Device device, uint64_t size) {
    const c10::cuda::CUDAGuard guard(device);
    size_t free = 0, all = 0;
    RLHF_CUDA_OR(kInternal, cudaMemGetInfo(&free, &all));
    if (size + kHeader > free / 2) {
      return absl::ResourceExhaustedError(absl::StrCat("weights in GPU memory: a copy of ", size, " bytes, and ", free,
                                                       " are free, of which half may be taken"));
    }
    std::unique_ptr<CudaMemory> memory(new CudaMemory(device));
    RLHF_CUDA_OR(kResourceExhausted, cudaMalloc(&memory->memory_, (size + kHeader + kBlock - 1) / kBlock * kBlock));
    cudaIpcMemHandle_t handle;
    RLHF_CUDA_OR(kFailedPrecondition, cudaIpcGetMemHandle(&handle, memory->memory_));
    memory->handle_.assign(reinterpret_cast<const char*>(&handle), sizeof(handle));
    return std::unique_ptr<ShareableMemory>(std::move(memory));
  }
  ~CudaMemory() override {
    if (memory_ == nullptr) return;
    const c10::cuda::CUDAGuard guard(device_);
    cudaFree(memory_);
  }

  const std::string& handle() const override { return handle_; }
  absl::Status Write(const std::vector<torch::Tensor>& tensors, uint64_t generation) override {
    const c10::cuda::CUDAGuard guard(device_);
    const cudaStream_t stream = at::cuda::getCurrentCUDAStream(device_.index()).stream();
    if (absl::Status status = WriteGeneration(memory_, 0, stream); !status.ok()) return status;
    char* to = static_cast<char*>(memory_) + kHeader;
    for (const torch::Tensor& tensor : tensors) {
      RLHF_CUDA_OR(kInternal,
                   cudaMemcpyAsync(to, tensor.const_data_ptr(), tensor.nbytes(), cudaMemcpyDeviceToDevice, stream));
      to += tensor.nbytes();
    }
    // All that was copied is there before the generation says so.
    RLHF_CUDA_OR(kInternal, cudaStreamSynchronize(stream));
    return WriteGeneration(memory_, generation, stream);
  }

 private:
  explicit CudaMemory(torch::Device device) : device_(device) {}

  const torch::Device device_;
  void* memory_ = nullptr;  // a header, then the bytes
  std::string handle_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ShareableMemory>> AllocateOnDevice(torch::Device device, uint64_t size) {
  if (!device.is_cuda()) return absl::FailedPreconditionError("weights in GPU memory: this process computes elsewhere");
  return CudaMemory::Allocate(device, size);
}

absl::StatusOr<torch::Tensor> TakeShared(const DeviceShareName& name, uint64_t size, torch::Device device) {
  if (!device.is_cuda()) return absl::FailedPreconditionError("weights in GPU memory: this process computes elsewhere");
  const c10::cuda::CUDAGuard guard(device);
  cudaIpcMemHandle_t handle;
  if (name.handle.size() != sizeof(handle)) {
    return absl::FailedPreconditionError(absl::StrCat("weights in GPU memory: expected a handle of ", sizeof(handle),
                                                      " bytes, found ", name.handle.size()));
  }
  std::memcpy(&handle, name.handle.data(), sizeof(handle));
  void* memory = nullptr;
  RLHF_CUDA_OR(kFailedPrecondition, cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess));
  // Not kept open until the next version: memory that its owner frees must not be mapped elsewhere.
  const absl::Cleanup close = [memory] { cudaIpcCloseMemHandle(memory); };
  // This thread's stream, which is the allocator's too: the block may be one that the stream still reads.
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream(device.index()).stream();
  const auto replaced = [&] {
    return absl::NotFoundError(absl::StrCat("weights in GPU memory: generation ", name.generation, " was replaced"));
  };
  absl::StatusOr<uint64_t> generation = ReadGeneration(memory, stream);
  if (!generation.ok()) return generation.status();
  if (*generation != name.generation) return replaced();
  const torch::Tensor copy =
      torch::empty({static_cast<int64_t>(size)}, torch::TensorOptions().dtype(torch::kByte).device(device));
  RLHF_CUDA_OR(kInternal, cudaMemcpyAsync(copy.data_ptr(), static_cast<const char*>(memory) + kHeader, size,
                                          cudaMemcpyDeviceToDevice, stream));
  RLHF_CUDA_OR(kInternal, cudaStreamSynchronize(stream));
  generation = ReadGeneration(memory, stream);
  if (!generation.ok()) return generation.status();
  if (*generation != name.generation) return replaced();
  return copy;
}

#undef RLHF_CUDA_OR

#else

namespace {
constexpr char kNoCuda[] = "weights in GPU memory: this build has no CUDA";
}  // namespace

absl::StatusOr<std::unique_ptr<ShareableMemory>> AllocateOnDevice(torch::Device /*device*/, uint64_t /*size*/) {
  return absl::FailedPreconditionError(kNoCuda);
}
absl::StatusOr<torch::Tensor> TakeShared(const DeviceShareName& /*name*/, uint64_t /*size*/, torch::Device /*device*/) {
  return absl::FailedPreconditionError(kNoCuda);
}

#endif

}  // namespace rlhf::model
