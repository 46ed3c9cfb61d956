// Forward passes and gradients on the device against the CPU's.
#include <gtest/gtest.h>

#include "model/attention.h"
#include "model/device_ops.h"
#include "model/log_probs.h"
#include "tests/gpu/gpu_test.h"

namespace rlhf::model {
namespace {

using ForwardTest = GpuTest;

// Sequences of several lengths, in the vocabulary of every tiny model.
std::vector<std::vector<int32_t>> Sequences(const Transformer& model) {
  std::vector<std::vector<int32_t>> out;
  for (const int length : {13, 1, 7, 20}) {
    auto& sequence = out.emplace_back();
    for (int i = 0; i < length; ++i)
      sequence.push_back(static_cast<int32_t>((i * 7 + length) % std::min<int64_t>(model.config().vocab_size, 50)));
  }
  return out;
}

struct Pass {
  torch::Tensor hidden, log_probs;
  std::vector<torch::Tensor> gradients;
};

Pass Compute(Transformer& model) {
  std::vector<torch::Tensor> leaves;
  for (const auto& [name, parameter] : model.named_parameters()) {
    torch::Tensor leaf = parameter;
    leaf.requires_grad_(true);
    leaves.push_back(leaf);
  }
  const PackedBatch batch = PackedBatch::FromSequences(Sequences(model), model.device());
  const ResponseIndex index = IndexResponses(batch, std::vector<int64_t>(batch.lengths.size(), 1));
  Pass pass;
  pass.hidden = model.Hidden(batch);
  pass.log_probs =
      ChunkedLogProbs(model, pass.hidden.index_select(0, index.rows), index.targets, 1.0, false, 8).log_probs;
  pass.log_probs.sum().backward();
  for (torch::Tensor& leaf : leaves) {
    pass.gradients.push_back(leaf.grad().defined() ? leaf.grad().clone() : torch::zeros_like(leaf));
    leaf.mutable_grad().reset();
    leaf.requires_grad_(false);
  }
  return pass;
}

TEST_F(ForwardTest, Float32IsTheCpus) {
  for (const auto& [name, cpu] : FamilyModels()) {
    const auto there = Copied(*cpu, torch::kFloat32, device_);
    const Pass expected = Compute(*cpu), found = Compute(*there);
    EXPECT_LE(Apart(found.hidden, expected.hidden), 2e-5) << name;
    EXPECT_LE(Apart(found.log_probs, expected.log_probs), 2e-5) << name;
    for (size_t i = 0; i < expected.gradients.size(); ++i)
      EXPECT_LE(Apart(found.gradients[i], expected.gradients[i]), 1e-4)
          << name << ": " << cpu->named_parameters()[i].first;
  }
}

// The same rounded weights in float32 on the CPU: what differs are the device's sums and what it rounds between them.
TEST_F(ForwardTest, Bfloat16IsNearFloat32) {
  for (const auto& [name, cpu] : FamilyModels()) {
    const auto there = Copied(*cpu, torch::kBFloat16, device_);
    const auto rounded = Copied(*there, torch::kFloat32, torch::kCPU);
    const Pass expected = Compute(*rounded), found = Compute(*there);
    EXPECT_LE(ApartOnAverage(found.hidden, expected.hidden), 0.03) << name;
    EXPECT_LE(ApartOnAverage(found.log_probs, expected.log_probs), 0.03) << name;
    for (size_t i = 0; i < expected.gradients.size(); ++i) {
      if (expected.gradients[i].norm().item<double>() < 1e-6) continue;
      EXPECT_LE(ApartOnAverage(found.gradients[i], expected.gradients[i]), 0.1)
          << name << ": " << cpu->named_parameters()[i].first;
    }
  }
}

TEST_F(ForwardTest, FlashAttentionIsPlainAttention) {
  torch::manual_seed(2);
  const std::vector<int64_t> lengths = {70, 1, 33};
  for (const int64_t window : {0, 16}) {
    for (const int64_t dim : {32, 64, 128}) {
      kernels::AttentionShape shape;
      shape.heads = 6;
      shape.kv_heads = 2;
      shape.dim = dim;
      shape.scale = 0.2F;
      shape.window = window;
      const torch::Tensor host = torch::randn({104, shape.heads + 2 * shape.kv_heads, dim}).to(torch::kBFloat16);
      torch::Tensor there = host.to(device_).requires_grad_(true);
      torch::Tensor plain = host.to(torch::kFloat32).requires_grad_(true);
      if (!HasFlashAttention(shape, there)) GTEST_SKIP() << "this device is older than compute capability 8";
      const torch::Tensor found = AttendPacked(shape, there, PackedLayout::Of(lengths, device_), false);
      const torch::Tensor expected = AttendPacked(shape, plain, PackedLayout::Of(lengths, torch::kCPU), false);
      EXPECT_LE(ApartOnAverage(found, expected), 0.01) << "window " << window << ", dim " << dim;
      found.to(torch::kFloat32).square().sum().backward();
      expected.square().sum().backward();
      EXPECT_LE(ApartOnAverage(there.grad(), plain.grad()), 0.02) << "window " << window << ", dim " << dim;
      // The newest positions of a cached sequence.
      const torch::NoGradGuard no_grad;
      const auto cached = [&](const torch::Tensor& qkv) {
        const torch::Tensor one = qkv.detach().narrow(0, 0, 70);
        return AttendCached(shape, one.narrow(0, 50, 20).narrow(1, 0, shape.heads),
                            one.narrow(1, shape.heads, shape.kv_heads).transpose(0, 1).contiguous(),
                            one.narrow(1, shape.heads + shape.kv_heads, shape.kv_heads).transpose(0, 1).contiguous(),
                            false);
      };
      EXPECT_LE(ApartOnAverage(cached(there), cached(plain)), 0.01) << "window " << window << ", dim " << dim;
    }
  }
}

TEST_F(ForwardTest, WeightsGoThroughPinnedBuffersWhole) {
  for (const int64_t count : {int64_t{1000}, int64_t{1} << 20, (int64_t{1} << 22) + 3, (int64_t{1} << 24) + 12345}) {
    const torch::Tensor host = torch::arange(count, torch::kFloat32);
    torch::Tensor there = torch::zeros({count}, torch::TensorOptions().device(device_));
    CopyInto(there, host);
    EXPECT_TRUE(torch::equal(there.to(torch::kCPU), host)) << count;
    // Another type is converted on the way.
    torch::Tensor half = torch::zeros({count}, torch::TensorOptions().dtype(torch::kBFloat16).device(device_));
    CopyInto(half, host);
    EXPECT_TRUE(torch::equal(half.to(torch::kCPU), host.to(torch::kBFloat16))) << count;
  }
}

}  // namespace
}  // namespace rlhf::model
