// Adapters against peft (recorded by tests/golden/generate_lora.py): numbers, gradients, files, merging.
#include "model/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "artifact/safetensors.h"
#include "common/durable_file.h"
#include "model/kv_cache.h"
#include "model/log_probs.h"
#include "model/weights_io.h"
#include "tests/model/family_models.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tensor_memory.h"

namespace rlhf::model {
namespace {

using testing::HasSubstr;

class LoraTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    golden_ = Golden("lora.json")["cases"][GetParam()];
    const nlohmann::json families = Golden("families.json");
    family_ = families["models"][golden_["family"].get<std::string>()];
    ids_ = families["ids"].get<std::vector<int32_t>>();
    ids_.resize(families["short"].get<size_t>());
    head_ = golden_["scalar"].get<bool>() ? HeadKind::kScalar : HeadKind::kLm;
    model_ = FamilyModel(family_, head_);
    ASSERT_NE(model_, nullptr);
    LoraConfig lora;
    lora.rank = golden_["rank"].get<int64_t>();
    lora.alpha = golden_["alpha"].get<double>();
    lora.target_modules = golden_["targets"].get<std::vector<std::string>>();
    ASSERT_TRUE(model_->AttachLora(lora, 1).ok());
  }
  void FillAdapters() {
    const torch::NoGradGuard no_grad;
    const auto names = golden_["names"].get<std::vector<std::string>>();
    ASSERT_EQ(names.size(), model_->trained_parameters().size());
    for (size_t k = 0; k < names.size(); ++k) {
      for (const auto& [name, parameter] : model_->trained_parameters()) {
        if (name != names[k] || name.find("lora_") == std::string::npos) continue;
        std::vector<float> values(static_cast<size_t>(parameter.numel()));
        for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(FormulaValue(i, 500 + k, 0.2));
        torch::Tensor(parameter).copy_(torch::tensor(values).view(parameter.sizes()));
      }
    }
  }
  torch::Tensor Result(const Transformer& model) const {
    const torch::Tensor hidden = model.Hidden(PackedBatch::FromSequences({ids_}));
    const torch::Tensor last = hidden.narrow(0, hidden.size(0) - 1, 1);
    return (head_ == HeadKind::kLm ? model.Logits(last) : model.Scalar(last)).view({-1});
  }
  void ExpectResult(const Transformer& model) const {
    const torch::NoGradGuard no_grad;
    const torch::Tensor expected = torch::tensor(golden_["result"].get<std::vector<double>>(), torch::kFloat32);
    EXPECT_LE((Result(model) - expected).abs().max().item<double>(),
              2e-5 * std::max(1.0, expected.abs().max().item<double>()));
  }
  nlohmann::json golden_, family_;
  std::vector<int32_t> ids_;
  HeadKind head_ = HeadKind::kLm;
  std::unique_ptr<Transformer> model_;
  ScratchDir dir_;
};
INSTANTIATE_TEST_SUITE_P(Cases, LoraTest, testing::Values("llama", "gpt2", "phi3", "reward"));

TEST_P(LoraTest, NumbersAndGradientsAreThoseOfPeft) {
  FillAdapters();
  for (const bool deterministic : {false, true}) {
    ASSERT_TRUE(model_->SetDeterministic(deterministic).ok());
    ExpectResult(*model_);
    for (const auto& [name, parameter] : model_->trained_parameters()) torch::Tensor(parameter).requires_grad_(true);
    torch::Tensor loss;
    if (head_ == HeadKind::kScalar) {
      loss = Result(*model_).mean();
    } else {
      const PackedBatch batch = PackedBatch::FromSequences({ids_});
      const ResponseIndex index = IndexResponses(batch, {1});
      loss =
          -ChunkedLogProbs(*model_, model_->Hidden(batch).index_select(0, index.rows), index.targets).log_probs.mean();
    }
    loss.backward();
    for (const auto& [name, parameter] : model_->trained_parameters()) {
      const double expected = golden_["gradients"][name].get<double>();
      EXPECT_NEAR(parameter.grad().norm().item<double>(), expected, 1e-4 * expected + 1e-7) << name;
      torch::Tensor(parameter).mutable_grad().reset();
    }
  }
}

TEST_P(LoraTest, FreshOrSwitchedOffAdaptersChangeNothing) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor base = Result(*FamilyModel(family_, head_));
  EXPECT_TRUE(torch::equal(Result(*model_), base));
  FillAdapters();
  EXPECT_FALSE(torch::allclose(Result(*model_), base, 1e-3, 1e-3));
  model_->SetAdaptersActive(false);
  EXPECT_TRUE(torch::equal(Result(*model_), base));
}

// The reference policy is the model with its adapters off: nothing of the base is there twice.
TEST_P(LoraTest, TheBaseIsHeldOnce) {
  const auto memory = std::make_shared<TensorMemory>();
  const c10::DebugInfoGuard counting(c10::DebugInfoKind::PROFILER_STATE, memory);
  const torch::NoGradGuard no_grad;
  const auto model = FamilyModel(family_, head_);
  Result(*model);  // makes the tables of positions
  const int64_t base = memory->live();
  int64_t weights = 0, adapters = 0;
  for (const auto& [name, parameter] : model->named_parameters()) weights += static_cast<int64_t>(parameter.nbytes());
  EXPECT_GE(base, weights);
  ASSERT_TRUE(model->AttachLora(*model_->lora(), 1).ok());
  for (const auto& [name, parameter] : model->trained_parameters()) {
    if (name.find("lora_") != std::string::npos) adapters += static_cast<int64_t>(parameter.nbytes());
  }
  Result(*model);
  EXPECT_EQ(memory->live(), base + adapters);
  model->SetAdaptersActive(false);
  Result(*model);
  EXPECT_EQ(memory->live(), base + adapters);
}

TEST_P(LoraTest, FilesAreThoseOfPeftAndComeBackBitForBit) {
  FillAdapters();
  const std::string dir = dir_.File("adapter");
  ASSERT_TRUE(SaveAdapter(*model_, dir, "base").ok());
  const auto file = artifact::SafetensorsFile::Open(dir + "/adapter_model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<std::string> keys;
  for (const auto& [key, info] : (*file)->tensors()) keys.push_back(key);
  EXPECT_EQ(keys, golden_["keys"].get<std::vector<std::string>>());
  const auto again = FamilyModel(family_, head_);
  ASSERT_TRUE(LoadAdapter(dir, again.get()).ok());
  EXPECT_EQ(WeightsDigest(*again), WeightsDigest(*model_));
  ExpectResult(*again);
  // What peft itself wrote as settings is read too.
  ASSERT_TRUE(WriteFileDurably(dir + "/adapter_config.json", golden_["adapter_config"].dump()).ok());
  const auto config = LoadAdapterConfig(dir);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rank, golden_["rank"].get<int64_t>());
  EXPECT_EQ(config->alpha, golden_["alpha"].get<double>());
}

TEST_P(LoraTest, MergedWeightsGiveTheSameNumbers) {
  FillAdapters();
  const std::string dir = dir_.File("merged");
  ASSERT_TRUE(SaveModel(*model_, dir, "").ok());
  LoadOptions options;
  options.head = head_;
  const auto merged = LoadModel(dir, options);
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ((*merged)->lora(), nullptr);
  ExpectResult(**merged);
}

TEST(LoraErrorsTest, WhatDoesNotFitIsNamed) {
  const nlohmann::json family = Golden("families.json")["models"]["llama"];
  const auto model = FamilyModel(family);
  const absl::Status unknown = model->AttachLora({.rank = 2, .alpha = 2, .target_modules = {"c_attn"}}, 0);
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("q_proj"));
  EXPECT_FALSE(model->AttachLora({.rank = 0, .alpha = 2}, 0).ok());
  ASSERT_TRUE(model->AttachLora({.rank = 2, .alpha = 2, .target_modules = {"q_proj"}}, 0).ok());
  ScratchDir dir;
  ASSERT_TRUE(SaveAdapter(*model, dir.path(), "base").ok());
  const auto text = ReadFile(dir.File("adapter_config.json"));
  ASSERT_TRUE(text.ok());
  const auto refused = [&](const std::string& key, const nlohmann::json& value, const std::string& says) {
    nlohmann::json config = nlohmann::json::parse(*text);
    config[key] = value;
    ASSERT_TRUE(WriteFileDurably(dir.File("adapter_config.json"), config.dump()).ok());
    const absl::Status status = LoadAdapter(dir.path(), FamilyModel(family).get());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key;
    EXPECT_THAT(std::string(status.message()), HasSubstr(says)) << key;
  };
  refused("use_rslora", true, "use_rslora");
  refused("rank_pattern", {{"q_proj", 4}}, "rank_pattern");
  refused("r", 3, "misshaped");
  refused("target_modules", {"q_proj", "v_proj"}, "missing");
  refused("target_modules", {"v_proj"}, "extra");
  refused("target_modules", "q_.*", "target_modules");
  // Too deep to be copied or written out.
  const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
  for (const char* key : {"exclude_modules", "modules_to_save"}) {
    ASSERT_TRUE(
        WriteFileDurably(dir.File("adapter_config.json"), absl::StrCat("{\"r\":2,\"", key, "\":", deep, "}")).ok());
    const absl::Status status = LoadAdapterConfig(dir.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(key, ": found a list of 1")));
  }
}

}  // namespace
}  // namespace rlhf::model
