#include "model/device_share.h"

#ifdef RLHF_CUDA
#include <cstring>

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#endif

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace rlhf::model {

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

}  // namespace

absl::StatusOr<DeviceShareName> DeviceShare::Put(const std::vector<torch::Tensor>& tensors) {
  uint64_t size = 0;
  for (const torch::Tensor& tensor : tensors) {
    if (!tensor.is_cuda() || !tensor.is_contiguous() || tensor.device() != tensors.front().device())
      return absl::FailedPreconditionError("weights in GPU memory: expected contiguous tensors of one CUDA device");
    size += tensor.nbytes();
  }
  if (size == 0) return absl::FailedPreconditionError("weights in GPU memory: nothing to share");
  const torch::Device device = tensors.front().device();
  const c10::cuda::CUDAGuard guard(device);
  if (device != device_ || size > capacity_) {
    Free();
    size_t free = 0, all = 0;
    RLHF_CUDA_OR(kInternal, cudaMemGetInfo(&free, &all));
    if (size + kHeader > free / 2) {
      return absl::ResourceExhaustedError(absl::StrCat("weights in GPU memory: a copy of ", size, " bytes, and ", free,
                                                       " are free, of which half may be taken"));
    }
    RLHF_CUDA_OR(kResourceExhausted, cudaMalloc(&memory_, (size + kHeader + kBlock - 1) / kBlock * kBlock));
    device_ = device;
    capacity_ = size;
    cudaIpcMemHandle_t handle;
    if (const cudaError_t error = cudaIpcGetMemHandle(&handle, memory_); error != cudaSuccess) {
      Free();
      return CudaStatus(absl::StatusCode::kFailedPrecondition, error, "cudaIpcGetMemHandle");
    }
    handle_.assign(reinterpret_cast<const char*>(&handle), sizeof(handle));
  }
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream(device.index()).stream();
  if (absl::Status status = WriteGeneration(memory_, 0, stream); !status.ok()) return status;
  char* to = static_cast<char*>(memory_) + kHeader;
  for (const torch::Tensor& tensor : tensors) {
    RLHF_CUDA_OR(kInternal,
                 cudaMemcpyAsync(to, tensor.const_data_ptr(), tensor.nbytes(), cudaMemcpyDeviceToDevice, stream));
    to += tensor.nbytes();
  }
  // All that was copied is there before the generation says so.
  RLHF_CUDA_OR(kInternal, cudaStreamSynchronize(stream));
  if (absl::Status status = WriteGeneration(memory_, ++generation_, stream); !status.ok()) return status;
  return DeviceShareName{handle_, generation_};
}

void DeviceShare::Free() {
  if (memory_ == nullptr) return;
  const c10::cuda::CUDAGuard guard(device_);
  cudaFree(memory_);
  memory_ = nullptr;
  capacity_ = 0;
  handle_.clear();
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

absl::StatusOr<DeviceShareName> DeviceShare::Put(const std::vector<torch::Tensor>& /*tensors*/) {
  return absl::FailedPreconditionError(kNoCuda);
}
void DeviceShare::Free() {}
absl::StatusOr<torch::Tensor> TakeShared(const DeviceShareName& /*name*/, uint64_t /*size*/, torch::Device /*device*/) {
  return absl::FailedPreconditionError(kNoCuda);
}

#endif

}  // namespace rlhf::model
