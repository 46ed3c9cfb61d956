// Generation's own pass on CPUs: it follows every change of the weights, and its bytes depend on neither the threads
// nor what else is generated. Its numbers are those of families_test.cc, int8_test.cc and the golden files.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "model/kv_cache.h"
#include "model/packed_linear.h"
#include "tests/model/family_models.h"

namespace rlhf::model {
namespace {

std::unique_ptr<Transformer> SmallModel() {
  const nlohmann::json families = Golden("families.json");
  return FamilyModel(families["models"]["llama"], HeadKind::kLm);
}

torch::Tensor LastByExtend(const Transformer& model, const std::vector<int32_t>& ids) {
  KvCache cache(model.config(), 1, static_cast<int>(ids.size()), model.dtype(), torch::kCPU);
  return model.Logits(model.Extend(PackedBatch::FromSequences({ids}), {0}, cache));
}
torch::Tensor LastByHidden(const Transformer& model, const std::vector<int32_t>& ids) {
  const torch::Tensor hidden = model.Hidden(PackedBatch::FromSequences({ids}));
  return model.Logits(hidden.narrow(0, hidden.size(0) - 1, 1));
}

TEST(CpuGenerationTest, EveryChangeOfTheWeightsIsFollowed) {
  const torch::NoGradGuard no_grad;
  const auto model = SmallModel();
  const std::vector<int32_t> ids{3, 1, 4, 1, 5, 9, 2, 6};
  torch::Tensor before = LastByExtend(*model, ids);
  const auto expect_new = [&](const char* what) {
    const torch::Tensor now = LastByExtend(*model, ids);
    EXPECT_TRUE(torch::allclose(now, LastByHidden(*model, ids), 1e-4, 1e-5)) << what;
    EXPECT_FALSE(torch::allclose(now, before, 1e-4, 1e-5)) << what;
    before = now;
  };
  const auto& parameters = model->named_parameters();
  const auto [name, first] = parameters[1];
  torch::Tensor(first).mul_(1.5);
  expect_new("changed by its own operation");
  model->SetParameter(name, first * 0.5);
  expect_new("set by name");
  {
    const c10::InferenceMode inference;
    model->SetParameter(name, first * 3);
  }
  expect_new("set in inference mode");
  LoraConfig lora;
  lora.rank = 2;
  ASSERT_TRUE(model->AttachLora(lora, 1).ok());
  for (const auto& [adapter, tensor] : model->trained_parameters())
    model->SetParameter(adapter, torch::full(tensor.sizes(), 0.3));
  expect_new("adapters set");
  model->SetAdaptersActive(false);
  expect_new("adapters off");
  model->SetAdaptersActive(true);
  ASSERT_TRUE(model->SetDeterministic(true).ok());
  expect_new("adapters on, deterministic");
}

// Sequences one by one with one thread, and together with several: prompts, then tokens.
TEST(CpuGenerationTest, NeitherThreadsNorNeighboursChangeABit) {
  const torch::NoGradGuard no_grad;
  const int threads = at::get_num_threads();
  const std::vector<std::vector<int32_t>> prompts{{3, 1, 4}, {1, 5}, {9, 2, 6, 5, 3}, {5}, {8, 9, 7}};
  for (const char* kind : {"float32", "bfloat16", "int8"}) {
    const auto source = SmallModel();
    auto config = source->config();
    Transformer model(config, HeadKind::kLm, kind == std::string("bfloat16") ? torch::kBFloat16 : torch::kFloat32,
                      torch::kCPU);
    if (kind == std::string("int8")) {
      ASSERT_TRUE(model.UseInt8().ok());
    }
    for (const auto& [name, tensor] : source->named_parameters()) model.SetParameter(name, tensor);
    // One sequence, its first token as a prompt and the others one at a time.
    const auto alone = [&](const std::vector<int32_t>& ids) {
      KvCache cache(config, 1, 8, model.dtype(), torch::kCPU);
      std::vector<torch::Tensor> out;
      for (size_t t = 0; t < ids.size(); ++t) {
        PackedBatch step = PackedBatch::FromSequences({{ids[t]}});
        step.position_ids.fill_(static_cast<int64_t>(t));
        out.push_back(model.Logits(model.Extend(step, {0}, cache)));
      }
      return out;
    };
    at::set_num_threads(1);
    std::vector<std::vector<torch::Tensor>> expected;
    for (const auto& prompt : prompts) expected.push_back(alone(prompt));
    for (const int now : {1, 2, 3}) {
      at::set_num_threads(now);
      KvCache cache(config, static_cast<int>(prompts.size()), 8, model.dtype(), torch::kCPU);
      for (size_t t = 0; t < 5; ++t) {
        std::vector<std::vector<int32_t>> inputs;
        std::vector<int> slots;
        for (size_t i = 0; i < prompts.size(); ++i) {
          if (t >= prompts[i].size()) continue;
          inputs.push_back({prompts[i][t]});
          slots.push_back(static_cast<int>(i));
        }
        PackedBatch step = PackedBatch::FromSequences(inputs);
        step.position_ids.fill_(static_cast<int64_t>(t));
        const torch::Tensor logits = model.Logits(model.Extend(step, slots, cache));
        for (size_t j = 0; j < slots.size(); ++j)
          EXPECT_TRUE(torch::equal(logits[static_cast<int64_t>(j)], expected[static_cast<size_t>(slots[j])][t][0]))
              << kind << ", " << now << " threads, sequence " << slots[j] << ", token " << t;
      }
    }
  }
  at::set_num_threads(threads);
}

TEST(CpuGenerationTest, ATokenBeyondTheVocabularyIsRefused) {
  const auto model = SmallModel();
  const auto beyond = static_cast<int32_t>(model->config().vocab_size);
  EXPECT_THROW(LastByExtend(*model, {1, beyond}), c10::Error);
}

TEST(PackedLinearTest, ProductsAreThoseOfItsTypeForEveryShape) {
  torch::manual_seed(0);
  for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
    if (!PackedLinear::Serves(dtype)) continue;
    for (const auto& [rows, in, out] : {std::tuple{1, 7, 5}, {3, 64, 33}, {29, 129, 200}, {40, 300, 1000}}) {
      const torch::Tensor first = torch::randn({out, in}).to(dtype), second = torch::randn({in, 3}).to(dtype).t();
      const torch::Tensor bias = torch::randn({out + 3}).to(dtype), x = torch::randn({rows, in}),
                          y = torch::full({rows, out + 3}, NAN);
      PackedLinear linear;
      linear.Pack({first, second}, {bias});
      PackedLinear::Scratch scratch;
      linear.Multiply(x.data_ptr<float>(), rows, y.data_ptr<float>(), &scratch);
      const torch::Tensor exact =
          x.to(dtype).to(torch::kFloat64).matmul(torch::cat({first, second}).to(torch::kFloat64).t()) +
          bias.to(torch::kFloat64);
      EXPECT_LE((y - exact).abs().max().item<double>(), 1e-6 * in * 4) << rows << " " << in << " " << out;
    }
  }
}

}  // namespace
}  // namespace rlhf::model
