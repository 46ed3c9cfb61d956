// The kernels of generation: attention of one token against a cache, the sampler, a step as a recorded graph.
#include <gtest/gtest.h>

#include <c10/core/InferenceMode.h>

#include "model/decode_graphs.h"
#include "model/device_ops.h"
#include "model/kv_cache.h"
#include "model/sampler.h"
#include "tests/gpu/gpu_test.h"

namespace rlhf::model {
namespace {

using DecodeTest = GpuTest;

TEST_F(DecodeTest, AttentionIsTheCpuKernels) {
  torch::manual_seed(3);
  const std::vector<int64_t> lengths = {1, 900, 17, 0, 64};  // one stands for nothing
  struct Heads {
    int64_t heads, kv_heads, dim;
  };
  for (const auto& [heads, kv_heads, dim] :
       {Heads{4, 4, 16}, Heads{8, 4, 64}, Heads{8, 2, 64}, Heads{4, 2, 256}, Heads{9, 3, 96}, Heads{14, 2, 80},
        Heads{6, 1, 128}, Heads{8, 1, 256}, Heads{3, 3, 200}}) {
    for (const int64_t window : {0, 50}) {
      for (const float softcap : {0.0F, 10.0F}) {
        for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
          kernels::AttentionShape shape;
          shape.heads = heads;
          shape.kv_heads = kv_heads;
          shape.dim = dim;
          shape.scale = 0.3F;
          shape.window = window;
          shape.softcap = softcap;
          const auto count = static_cast<int64_t>(lengths.size());
          std::vector<int64_t> rows, begins, rooms;
          int64_t positions = 0;
          for (int64_t b = 0; b < count; ++b) {
            rows.push_back(count - 1 - b);  // in another order than the sequences'
            begins.push_back(positions * kv_heads * dim);
            rooms.push_back(lengths[static_cast<size_t>(b)] + 3);
            positions += rooms.back();
          }
          const torch::Tensor qkv = torch::randn({count, heads + 2 * kv_heads, dim}).to(dtype),
                              keys = torch::randn({positions * kv_heads * dim}).to(dtype),
                              values = torch::randn({positions * kv_heads * dim}).to(dtype);
          const torch::Tensor places =
              torch::stack({torch::tensor(rows, torch::kInt64), torch::tensor(begins, torch::kInt64),
                            torch::tensor(rooms, torch::kInt64), torch::tensor(lengths, torch::kInt64)});
          torch::Tensor there_keys = keys.to(device_), there_values = values.to(device_);
          torch::Tensor found = torch::full({count, heads * dim}, 7, qkv.options().device(device_));
          DecodeOnDevice(shape, qkv.to(device_), places.to(device_), there_keys, there_values, found);

          torch::Tensor plain_keys = keys.to(torch::kFloat32).clone(),
                        plain_values = values.to(torch::kFloat32).clone();
          torch::Tensor expected = torch::zeros({count, heads * dim});
          for (int64_t b = 0; b < count; ++b) {
            const auto i = static_cast<size_t>(b);
            if (lengths[i] == 0) continue;
            const torch::Tensor row = qkv[rows[i]].to(torch::kFloat32).contiguous();
            const auto slot = [&](torch::Tensor& store) {
              return store.narrow(0, begins[i], kv_heads * rooms[i] * dim).view({kv_heads, rooms[i], dim});
            };
            slot(plain_keys).select(1, lengths[i] - 1).copy_(row.narrow(0, heads, kv_heads));
            slot(plain_values).select(1, lengths[i] - 1).copy_(row.narrow(0, heads + kv_heads, kv_heads));
            std::vector<float> scratch(static_cast<size_t>(kernels::RoundUpTo16(lengths[i])));
            const kernels::CachedQuery query{row.data_ptr<float>(), begins[i], rooms[i], lengths[i],
                                             expected[rows[i]].data_ptr<float>()};
            kernels::DecodeAttention(shape, &query, 1, plain_keys.data_ptr<float>(), plain_values.data_ptr<float>(),
                                     scratch.data());
          }
          const double bound = dtype == torch::kFloat32 ? 1e-5 : 1e-2;  // the result is rounded once
          EXPECT_LE(Apart(found, expected), bound) << heads << " heads of " << kv_heads << ", dim " << dim
                                                   << ", window " << window << ", soft-cap " << softcap;
          EXPECT_TRUE(torch::equal(there_keys.to(torch::kCPU).to(torch::kFloat32), plain_keys));
          EXPECT_TRUE(torch::equal(there_values.to(torch::kCPU).to(torch::kFloat32), plain_values));
        }
      }
    }
  }
}

// Hidden of whole sequences, and of the same ones by prompt, chunk and token, some of each in one pass.
TEST_F(DecodeTest, ExtendIsHidden) {
  const torch::NoGradGuard no_grad;
  for (const auto& [name, cpu] : FamilyModels()) {
    const auto model = Copied(*cpu, torch::kFloat32, device_);
    std::vector<int32_t> ids;
    for (int i = 0; i < 20; ++i)
      ids.push_back(static_cast<int32_t>(i * 11 % std::min<int64_t>(model->config().vocab_size, 50)));
    const torch::Tensor whole = model->Hidden(PackedBatch::FromSequences({ids}, device_));
    KvCache cache(model->config(), 2, 32, torch::kFloat32, device_);
    const auto extend = [&](const std::vector<std::pair<int, size_t>>& parts) {
      std::vector<std::vector<int32_t>> inputs;
      std::vector<int64_t> positions;
      std::vector<int> slots;
      for (const auto& [slot, count] : parts) {
        const int64_t at = cache.length(slot);
        inputs.emplace_back(ids.begin() + at, ids.begin() + at + static_cast<int64_t>(count));
        for (size_t i = 0; i < count; ++i) positions.push_back(at + static_cast<int64_t>(i));
        slots.push_back(slot);
      }
      PackedBatch batch = PackedBatch::FromSequences(inputs, device_);
      batch.position_ids = ToDevice(positions, device_);
      const torch::Tensor hidden = model->Extend(batch, slots, cache);
      for (size_t i = 0; i < slots.size(); ++i) {
        EXPECT_LE(Apart(hidden[static_cast<int64_t>(i)], whole[cache.length(slots[i]) - 1]), 2e-5)
            << name << ": position " << cache.length(slots[i]) - 1 << " in slot " << slots[i];
      }
    };
    extend({{1, 9}});
    extend({{1, 1}, {0, 4}});
    extend({{1, 1}, {0, 3}});
    extend({{0, 1}, {1, 1}});
    extend({{1, 1}, {0, 1}});
  }
}

TEST_F(DecodeTest, TheSamplerIsTheCpus) {
  torch::manual_seed(5);
  const std::vector<SamplingParams> kinds = {{.temperature = 1},
                                             {.temperature = 0},
                                             {.temperature = 0.7},
                                             {.temperature = 1.3, .top_k = 17},
                                             {.temperature = 1, .top_p = 0.9},
                                             {.temperature = 0.8, .top_p = 0.6, .top_k = 40}};
  for (const int64_t width : {7, 1000, 50'257}) {
    const torch::Tensor logits = torch::randn({300, width}) * 2;
    std::vector<SamplingParams> params;
    std::vector<NoiseKey> keys;
    for (uint32_t i = 0; i < 300; ++i) {
      params.push_back(kinds[i % kinds.size()]);
      keys.push_back({.seed = 9, .stream = 2, .ordinal = i});
    }
    const std::vector<uint32_t> positions(300, 11);
    const auto expected = Sample(logits, params, keys, positions),
               found = Sample(logits.to(device_), params, keys, positions);
    int other = 0;  // where the noise falls on a border of the device's exponentials
    for (size_t i = 0; i < expected.size(); ++i) {
      if (found[i].id != expected[i].id) {
        ++other;
        continue;
      }
      EXPECT_NEAR(found[i].log_prob, expected[i].log_prob, 2e-5) << i;
      EXPECT_NEAR(found[i].log_kept_mass, expected[i].log_kept_mass, 2e-5) << i;
    }
    EXPECT_LE(other, 1) << "of 300, vocabulary " << width;
  }
}

TEST_F(DecodeTest, ARecordedStepIsExtend) {
  const c10::InferenceMode inference;
  for (const auto& [name, cpu] : FamilyModels()) {
    for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
      const auto model = Copied(*cpu, dtype, device_);
      KvCache recorded(model->config(), 4, 32, dtype, device_), plain(model->config(), 4, 32, dtype, device_);
      const auto graphs = DecodeGraphs::Make(*model, recorded);
      ASSERT_NE(graphs, nullptr) << name;
      const std::vector<std::vector<int32_t>> prompts = {{3, 4, 5}, {6}, {7, 8, 9, 10, 11}};
      const std::vector<int> slots = {2, 0, 3};
      for (KvCache* cache : {&recorded, &plain})
        model->Extend(PackedBatch::FromSequences(prompts, device_), slots, *cache);
      for (int32_t step = 0; step < 5; ++step) {
        // Batches of 3 in a graph of 4, then of 2: what is beyond a batch does no harm.
        const size_t batch = step < 3 ? 3 : 2;
        const std::vector<int32_t> tokens(batch, step + 1);
        const std::vector<int> some(slots.begin(), slots.begin() + static_cast<int64_t>(batch));
        const torch::Tensor found = graphs->Step(tokens, some).clone();
        PackedBatch one = PackedBatch::FromSequences(std::vector<std::vector<int32_t>>(batch, {step + 1}), device_);
        std::vector<int64_t> positions;
        for (const int slot : some) positions.push_back(plain.length(slot));
        one.position_ids = ToDevice(positions, device_);
        const torch::Tensor expected = model->Logits(model->Extend(one, some, plain));
        EXPECT_LE(Apart(found, expected), dtype == torch::kFloat32 ? 2e-5 : 2e-2) << name << ", step " << step;
      }
      EXPECT_EQ(graphs->failure(), "") << name;
      EXPECT_EQ(graphs->counters().recorded, 2) << name;
      EXPECT_EQ(graphs->counters().replayed, 5) << name;
    }
  }
}

TEST_F(DecodeTest, ARecordedStepSeesNewWeights) {
  const c10::InferenceMode inference;
  const auto models = FamilyModels();
  const auto model = Copied(*models.front().second, torch::kFloat32, device_);
  KvCache cache(model->config(), 1, 32, torch::kFloat32, device_);
  const auto graphs = DecodeGraphs::Make(*model, cache);
  ASSERT_NE(graphs, nullptr);
  const torch::Tensor before = graphs->Step({3}, {0}).clone();
  for (const auto& [name, parameter] : model->named_parameters())
    model->SetParameter(name, parameter.to(torch::kCPU) * 0.5);
  cache.Reset(0);
  const torch::Tensor after = graphs->Step({3}, {0}).clone();
  EXPECT_GT(Apart(after, before), 1e-3);
  const torch::Tensor expected = model->Logits(model->Hidden(PackedBatch::FromSequences({{3}}, device_)));
  EXPECT_LE(Apart(after, expected), 2e-5);
}

}  // namespace
}  // namespace rlhf::model
