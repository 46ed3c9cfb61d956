// What CUDA devices do by kernels of their own or LibTorch's fused ones. In a build without CUDA nothing is served, and
// the rest must not be called.
#pragma once

#include <vector>

#include "model/kernels/cpu_kernels.h"
#include "model/libtorch.h"
#include "model/sampler.h"

namespace rlhf::model {

// Whether the kernels of generation serve such keys and values: on CUDA, float32 or bfloat16, heads of at most 256.
bool HasDecodeKernel(const kernels::AttentionShape& shape, torch::Dtype dtype, torch::Device device);

// Where sequences that extend by one token stand, int64 [4, B] on the device: the token's row among the pass's rows,
// where its slot's keys begin in a layer's store, how many positions the slot has room for, its length with the new
// token (0: nothing is done, and the row's result is 0).
//
// Puts the new keys and values of qkv [rows, heads + 2 · kv_heads, dim] into a layer's stores and attends to all of
// them, into rows of out [rows, heads · dim]. One query head's keys are cut into parts by the number of sequences
// alone: can be recorded in a CUDA graph. No gradient.
void DecodeOnDevice(const kernels::AttentionShape& shape, const torch::Tensor& qkv, const torch::Tensor& places,
                    const torch::Tensor& keys, const torch::Tensor& values, const torch::Tensor& out);

// Puts keys and values of qkv into a layer's stores, and no more. Several tokens of one sequence are as many columns of
// `places`, each with the length that it makes.
void AppendOnDevice(const kernels::AttentionShape& shape, const torch::Tensor& qkv, const torch::Tensor& places,
                    const torch::Tensor& keys, const torch::Tensor& values);

// Sample (sampler.h) for logits on CUDA, drawn there: one kernel, and one copy back, for which the host waits.
bool HasDeviceSampler(const torch::Tensor& logits);
std::vector<SampledToken> SampleOnDevice(const torch::Tensor& logits, const std::vector<SamplingParams>& params,
                                         const std::vector<NoiseKey>& keys, const std::vector<uint32_t>& positions);

// Whether LibTorch's flash attention serves: on CUDA with compute capability 8 or higher, bfloat16 or float16, heads of
// at most 256 (with gradients 192) whose size is a multiple of 8, no soft-capping.
bool HasFlashAttention(const kernels::AttentionShape& shape, const torch::Tensor& q);
// AttendPacked by it, without padding: begins int32 [B + 1] on the device, where each sequence's rows begin and the
// last one's end; longest: the most rows of one.
torch::Tensor FlashPacked(const kernels::AttentionShape& shape, const torch::Tensor& qkv, const torch::Tensor& begins,
                          int64_t longest);
// AttendCached by it.
torch::Tensor FlashCached(const kernels::AttentionShape& shape, const torch::Tensor& q, const torch::Tensor& keys,
                          const torch::Tensor& values);

}  // namespace rlhf::model
