#include "model/device_ops.h"

#ifdef RLHF_CUDA
#include <optional>
#include <tuple>

#include <ATen/cuda/CUDAContext.h>
#include <c10/core/InferenceMode.h>
#include <c10/cuda/CUDAGuard.h>

#include "model/kernels/cuda_kernels.h"
#endif

namespace rlhf::model {

#ifdef RLHF_CUDA
namespace {

kernels::cuda::Element ElementOf(const torch::Tensor& tensor) {
  return tensor.scalar_type() == torch::kFloat32 ? kernels::cuda::Element::kFloat32 : kernels::cuda::Element::kBfloat16;
}

void Launched(int error, const char* what) {
  TORCH_CHECK(error == 0, what, ": ", kernels::cuda::ErrorText(error));
}

kernels::cuda::DecodePlaces PlacesOf(const torch::Tensor& places) {
  const int64_t count = places.size(1);
  const auto* const numbers = places.data_ptr<int64_t>();
  return {numbers, numbers + count, numbers + 2 * count, numbers + 3 * count, count};
}

// Packed rows [T, heads, dim] with where they begin, or one sequence [1, T, heads, dim]. The causal border is the lower
// right corner's: the last query sees the last key.
torch::Tensor Flash(const kernels::AttentionShape& shape, const torch::Tensor& q, const torch::Tensor& k,
                    const torch::Tensor& v, const std::optional<torch::Tensor>& begins, int64_t longest_q,
                    int64_t longest_k) {
  const c10::cuda::CUDAGuard guard(q.device());
  const bool windowed = shape.window > 0 && shape.window < longest_k;
  return std::get<0>(at::_flash_attention_forward(
      q, k, v, begins, begins, longest_q, longest_k, /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false,
      /*scale=*/static_cast<double>(shape.scale), windowed ? std::optional<int64_t>(shape.window - 1) : std::nullopt,
      windowed ? std::optional<int64_t>(0) : std::nullopt));
}

}  // namespace

bool HasDecodeKernel(const kernels::AttentionShape& shape, torch::Dtype dtype, torch::Device device) {
  return device.is_cuda() && (dtype == torch::kFloat32 || dtype == torch::kBFloat16) &&
         shape.dim <= kernels::cuda::kLongestHead;
}

void AppendOnDevice(const kernels::AttentionShape& shape, const torch::Tensor& qkv, const torch::Tensor& places,
                    const torch::Tensor& keys, const torch::Tensor& values) {
  if (places.size(1) == 0) return;
  TORCH_CHECK(qkv.is_contiguous() && places.is_contiguous() && keys.is_contiguous() && values.is_contiguous() &&
                  keys.scalar_type() == qkv.scalar_type(),
              "generation needs contiguous tensors of one type");
  const c10::cuda::CUDAGuard guard(qkv.device());
  Launched(kernels::cuda::AppendKeys(shape, ElementOf(qkv), qkv.data_ptr(), PlacesOf(places), keys.data_ptr(),
                                     values.data_ptr(), at::cuda::getCurrentCUDAStream(qkv.get_device()).stream()),
           "appending keys");
}

void DecodeOnDevice(const kernels::AttentionShape& shape, const torch::Tensor& qkv, const torch::Tensor& places,
                    const torch::Tensor& keys, const torch::Tensor& values, const torch::Tensor& out) {
  const int64_t count = places.size(1);
  if (count == 0) return;
  TORCH_CHECK(out.is_contiguous(), "decoding needs a contiguous result");
  AppendOnDevice(shape, qkv, places, keys, values);
  const c10::cuda::CUDAGuard guard(qkv.device());
  void* const stream = at::cuda::getCurrentCUDAStream(qkv.get_device()).stream();
  const kernels::cuda::DecodePlaces at = PlacesOf(places);
  const int64_t splits =
      kernels::cuda::DecodeSplits(shape, count, at::cuda::getDeviceProperties(qkv.get_device())->multiProcessorCount);
  const torch::Tensor scratch =
      torch::empty({kernels::cuda::DecodeScratch(shape, count, splits)}, qkv.options().dtype(torch::kFloat32));
  Launched(kernels::cuda::DecodeAttention(shape, ElementOf(qkv), qkv.data_ptr(), keys.data_ptr(), values.data_ptr(), at,
                                          splits, scratch.numel() > 0 ? scratch.data_ptr<float>() : nullptr,
                                          out.data_ptr(), stream),
           "decode attention");
}

bool HasDeviceSampler(const torch::Tensor& logits) {
  return logits.is_cuda();
}

std::vector<SampledToken> SampleOnDevice(const torch::Tensor& logits, const std::vector<SamplingParams>& params,
                                         const std::vector<NoiseKey>& keys, const std::vector<uint32_t>& positions) {
  using kernels::SampledRow;
  using kernels::SampleRequest;
  const torch::Tensor rows = logits.detach().to(torch::kFloat32).contiguous();
  const int64_t count = rows.size(0), width = rows.size(1);
  const c10::cuda::CUDAGuard guard(rows.device());
  const auto stream = at::cuda::getCurrentCUDAStream(rows.get_device());
  const auto bytes = torch::TensorOptions().dtype(torch::kByte);
  const torch::Tensor asked =
      torch::empty({count * static_cast<int64_t>(sizeof(SampleRequest))}, bytes.pinned_memory(true));
  auto* const requests = static_cast<SampleRequest*>(asked.data_ptr());
  for (int64_t b = 0; b < count; ++b) {
    const auto i = static_cast<size_t>(b);
    SampleRequest& request = requests[b] = {};
    request.noise = NoiseOf(keys[i], positions[i]);
    request.greedy = params[i].temperature <= 0 ? 1 : 0;
    request.inverse_temperature = request.greedy != 0 ? 1.0F : static_cast<float>(1.0 / params[i].temperature);
    request.top_k = params[i].top_k;
    request.top_p = params[i].top_p;
  }
  const torch::Tensor there = asked.to(rows.device(), /*non_blocking=*/true);
  const torch::Tensor exps = torch::empty_like(rows);
  const torch::Tensor drawn =
      torch::empty({count * static_cast<int64_t>(sizeof(SampledRow))}, bytes.device(rows.device()));
  Launched(kernels::cuda::SampleRows(rows.data_ptr<float>(), count, width,
                                     static_cast<const SampleRequest*>(there.data_ptr()), exps.data_ptr<float>(),
                                     static_cast<SampledRow*>(drawn.data_ptr()), stream.stream()),
           "sampling");
  torch::Tensor back = torch::empty({drawn.numel()}, bytes.pinned_memory(true));
  back.copy_(drawn, /*non_blocking=*/true);
  stream.synchronize();
  const auto* const tokens = static_cast<const SampledRow*>(back.data_ptr());
  std::vector<SampledToken> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i].id = tokens[i].id;
    out[i].log_prob = tokens[i].log_prob;
    out[i].log_kept_mass = tokens[i].log_kept_mass;
  }
  return out;
}

bool HasFlashAttention(const kernels::AttentionShape& shape, const torch::Tensor& q) {
  constexpr int64_t kLongest = 256, kLongestWithGradient = 192;
  if (!q.is_cuda() || (q.scalar_type() != torch::kBFloat16 && q.scalar_type() != torch::kFloat16)) return false;
  // Also without gradients at the moment: a checkpointed layer's two passes must be computed alike.
  const bool inference = c10::InferenceMode::is_enabled();
  return shape.softcap == 0 && shape.dim % 8 == 0 && shape.dim <= (inference ? kLongest : kLongestWithGradient) &&
         at::cuda::getDeviceProperties(q.get_device())->major >= 8;
}

torch::Tensor FlashPacked(const kernels::AttentionShape& shape, const torch::Tensor& qkv, const torch::Tensor& begins,
                          int64_t longest) {
  // Split, not narrowed three times: a backward of one tensor instead of three to add up.
  const std::vector<torch::Tensor> parts =
      qkv.split_with_sizes({shape.heads, shape.kv_heads, shape.kv_heads}, /*dim=*/1);
  return Flash(shape, parts[0], parts[1], parts[2], begins, longest, longest).reshape({-1, shape.heads * shape.dim});
}

torch::Tensor FlashCached(const kernels::AttentionShape& shape, const torch::Tensor& q, const torch::Tensor& keys,
                          const torch::Tensor& values) {
  return Flash(shape, q.unsqueeze(0), keys.transpose(0, 1).unsqueeze(0), values.transpose(0, 1).unsqueeze(0), {},
               q.size(0), keys.size(1))
      .reshape({-1, shape.heads * shape.dim});
}

#else

namespace {
constexpr const char* kNoKernels = "this build has no CUDA kernels: build the preset cuda";
}  // namespace

bool HasDecodeKernel(const kernels::AttentionShape&, torch::Dtype, torch::Device) {
  return false;
}
void DecodeOnDevice(const kernels::AttentionShape&, const torch::Tensor&, const torch::Tensor&, const torch::Tensor&,
                    const torch::Tensor&, const torch::Tensor&) {
  TORCH_CHECK(false, kNoKernels);
}
void AppendOnDevice(const kernels::AttentionShape&, const torch::Tensor&, const torch::Tensor&, const torch::Tensor&,
                    const torch::Tensor&) {
  TORCH_CHECK(false, kNoKernels);
}
bool HasDeviceSampler(const torch::Tensor&) {
  return false;
}
std::vector<SampledToken> SampleOnDevice(const torch::Tensor&, const std::vector<SamplingParams>&,
                                         const std::vector<NoiseKey>&, const std::vector<uint32_t>&) {
  TORCH_CHECK(false, kNoKernels);
}
bool HasFlashAttention(const kernels::AttentionShape&, const torch::Tensor&) {
  return false;
}
torch::Tensor FlashPacked(const kernels::AttentionShape&, const torch::Tensor&, const torch::Tensor&, int64_t) {
  TORCH_CHECK(false, kNoKernels);
}
torch::Tensor FlashCached(const kernels::AttentionShape&, const torch::Tensor&, const torch::Tensor&,
                          const torch::Tensor&) {
  TORCH_CHECK(false, kNoKernels);
}

#endif

}  // namespace rlhf::model
