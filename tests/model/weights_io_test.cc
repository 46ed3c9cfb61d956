#include "model/weights_io.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <filesystem>
#include <tuple>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "artifact/safetensors.h"
#include "common/durable_file.h"
#include "tests/model/formula_model.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tensor_bytes.h"

namespace rlhf::model {
namespace {

using testing::HasSubstr;

class WeightsIoTest : public testing::TestWithParam<const char*> {
 protected:
  std::string Saved() {
    model_ = FormulaModel(Golden("model.json")["models"][GetParam()]);
    const std::string dir = dir_.File("model");
    EXPECT_TRUE(MakeDirs(dir).ok());
    const absl::Status status = SaveModel(*model_, dir, "");
    EXPECT_TRUE(status.ok()) << status;
    return dir;
  }
  // The tensors of a saved model, to be written again otherwise.
  std::vector<artifact::TensorToWrite> TensorsOf(const artifact::SafetensorsFile& file) {
    std::vector<artifact::TensorToWrite> out;
    for (const auto& [name, info] : file.tensors())
      out.push_back({name, info.dtype, info.shape, bytes_.emplace_back(TensorBytes(file, info))});
    return out;
  }
  ScratchDir dir_;
  std::unique_ptr<Transformer> model_;
  std::deque<std::vector<uint8_t>> bytes_;
};
INSTANTIATE_TEST_SUITE_P(Families, WeightsIoTest, testing::Values("llama", "llama_grouped_untied", "gpt2"));

TEST_P(WeightsIoTest, WhatIsSavedIsLoadedBitForBit) {
  const auto loaded = LoadModel(Saved());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(WeightsDigest(**loaded), WeightsDigest(*model_));
  torch::Tensor first = (*loaded)->named_parameters()[0].second.detach();
  first.view({-1})[0].add_(1e-6F);
  EXPECT_NE(WeightsDigest(**loaded), WeightsDigest(*model_));
}

TEST_P(WeightsIoTest, AScalarHeadIsStartedOnlyWhenAskedFor) {
  const std::string dir = Saved();
  LoadOptions options;
  options.head = HeadKind::kScalar;
  EXPECT_EQ(LoadModel(dir, options).status().code(), absl::StatusCode::kInvalidArgument);
  options.init_missing_scalar_head = true;
  const auto reward = LoadModel(dir, options);
  ASSERT_TRUE(reward.ok()) << reward.status();
  const std::string out = dir_.File("reward");
  ASSERT_TRUE(MakeDirs(out).ok());
  ASSERT_TRUE(SaveModel(**reward, out, "").ok());
  options.init_missing_scalar_head = false;
  const auto again = LoadModel(out, options);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(WeightsDigest(**again), WeightsDigest(**reward));
  // The head's row has the deviation that OAI's has.
  EXPECT_NEAR((*again)->head_weight().detach().std().item<double>(), 1 / std::sqrt(17.0), 0.15);
}

TEST_P(WeightsIoTest, AHeadMayHaveSeveralOutputs) {
  const std::string dir = Saved();
  LoadOptions options;
  options.head = HeadKind::kScalar;
  options.init_missing_scalar_head = true;
  options.scalar_outputs = 3;
  const auto reward = LoadModel(dir, options);
  ASSERT_TRUE(reward.ok()) << reward.status();
  EXPECT_EQ((*reward)->head_weight().size(0), 3);
  const torch::NoGradGuard no_grad;
  const torch::Tensor hidden = (*reward)->Hidden(PackedBatch::FromSequences({{1, 2, 3}}));
  EXPECT_EQ((*reward)->Scalar(hidden).sizes(), (std::vector<int64_t>{3, 3}));
  const std::string out = dir_.File("reward");
  ASSERT_TRUE(MakeDirs(out).ok());
  ASSERT_TRUE(SaveModel(**reward, out, "").ok());

  LoadOptions as_stored;
  as_stored.head = HeadKind::kScalar;
  const auto again = LoadModel(out, as_stored);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(WeightsDigest(**again), WeightsDigest(**reward));
  EXPECT_TRUE(CheckRewardHeads(**again, {.shift = 0, .scale = 1, .heads = {{"a"}, {"b"}, {"c"}}}, out).ok());
  const absl::Status nameless = CheckRewardHeads(**again, {}, out);
  EXPECT_EQ(nameless.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(nameless.message()), HasSubstr("3 labels"));
  // One output is asked for: this head is none of that size.
  as_stored.scalar_outputs = 1;
  EXPECT_THAT(std::string(LoadModel(out, as_stored).status().message()), HasSubstr("score.weight"));
  as_stored.init_missing_scalar_head = true;
  const auto critic = LoadModel(out, as_stored);
  ASSERT_TRUE(critic.ok()) << critic.status();
  EXPECT_EQ((*critic)->head_weight().size(0), 1);
}

TEST_P(WeightsIoTest, DamagedFilesAreNamed) {
  const std::string dir = Saved(), file = dir + "/model.safetensors";
  const auto bytes = ReadFile(file);
  ASSERT_TRUE(bytes.ok());
  for (const size_t size : {size_t{4}, size_t{40}, bytes->size() - 1}) {
    ASSERT_TRUE(WriteFileDurably(file, bytes->substr(0, size)).ok());
    const auto loaded = LoadModel(dir);
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument) << size << ": " << loaded.status();
    EXPECT_THAT(std::string(loaded.status().message()), HasSubstr("model.safetensors"));
  }
  std::filesystem::remove(file);
  EXPECT_EQ(LoadModel(dir).status().code(), absl::StatusCode::kNotFound);
}

TEST_P(WeightsIoTest, AConfigurationThatDoesNotFitItsWeightsIsRefused) {
  const std::string dir = Saved();
  const auto config = ReadFile(dir + "/config.json");
  ASSERT_TRUE(config.ok());
  nlohmann::json changed = nlohmann::json::parse(*config);
  changed["vocab_size"] = 48;
  ASSERT_TRUE(WriteFileDurably(dir + "/config.json", changed.dump()).ok());
  const auto loaded = LoadModel(dir);
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(loaded.status().message()), HasSubstr("48"));
}

TEST_P(WeightsIoTest, HalfWidthWeightsAreWrittenAndRead) {
  const auto whole = FormulaModel(Golden("model.json")["models"][GetParam()]);
  const std::tuple<torch::Dtype, artifact::DType, std::string> kinds[] = {
      {torch::kFloat16, artifact::DType::kF16, "float16"}, {torch::kBFloat16, artifact::DType::kBF16, "bfloat16"}};
  for (const auto& [dtype, stored, name] : kinds) {
    const Transformer half(whole->config(), HeadKind::kLm, dtype, torch::kCPU);
    for (size_t i = 0; i < half.named_parameters().size(); ++i) {
      torch::Tensor target = half.named_parameters()[i].second.detach();
      target.copy_(whole->named_parameters()[i].second.detach());
    }
    const std::string dir = dir_.File(name);
    ASSERT_TRUE(SaveModel(half, dir, "").ok());
    const auto file = artifact::SafetensorsFile::Open(dir + "/model.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    for (const auto& [key, info] : (*file)->tensors()) EXPECT_EQ(info.dtype, stored) << key;
    EXPECT_EQ(artifact::LoadModelConfig(dir)->dtype, name);
    LoadOptions options;
    options.dtype = dtype;
    const auto same = LoadModel(dir, options), wide = LoadModel(dir);
    ASSERT_TRUE(same.ok() && wide.ok()) << same.status() << wide.status();
    EXPECT_EQ(WeightsDigest(**same), WeightsDigest(half));
    for (size_t i = 0; i < half.named_parameters().size(); ++i) {
      EXPECT_TRUE(torch::equal((*wide)->named_parameters()[i].second.detach(),
                               half.named_parameters()[i].second.detach().to(torch::kFloat32)))
          << half.named_parameters()[i].first;
    }
  }
}

TEST_P(WeightsIoTest, ShardsAreOneModel) {
  const std::string dir = Saved(), first = "model-00001-of-00002.safetensors",
                    second = "model-00002-of-00002.safetensors";
  const auto file = artifact::SafetensorsFile::Open(dir + "/model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  const std::vector<artifact::TensorToWrite> all = TensorsOf(**file);
  std::vector<artifact::TensorToWrite> shards[2];
  nlohmann::json index;
  for (size_t i = 0; i < all.size(); ++i) {
    shards[i % 2].push_back(all[i]);
    index["weight_map"][all[i].name] = i % 2 == 0 ? first : second;
  }
  ASSERT_TRUE(artifact::WriteSafetensors(dir + "/" + first, shards[0]).ok());
  ASSERT_TRUE(artifact::WriteSafetensors(dir + "/" + second, shards[1]).ok());
  ASSERT_TRUE(WriteFileDurably(dir + "/model.safetensors.index.json", index.dump()).ok());
  std::filesystem::remove(dir + "/model.safetensors");
  const auto loaded = LoadModel(dir);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(WeightsDigest(**loaded), WeightsDigest(*model_));
  std::filesystem::remove(dir + "/" + second);
  const auto missing = LoadModel(dir);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr(second));
}

TEST_P(WeightsIoTest, SizesThatTheFilesHaveNothingForAreNotAllocated) {
  const std::string dir = Saved();
  const auto text = ReadFile(dir + "/config.json");
  ASSERT_TRUE(text.ok()) << text.status();
  auto json = nlohmann::json::parse(*text);
  json["vocab_size"] = 1 << 28;
  ASSERT_TRUE(WriteFileDurably(dir + "/config.json", json.dump()).ok());
  const auto loaded = LoadModel(dir);
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(loaded.status().message()), HasSubstr("do not fit config.json, whose sizes make"));
}

TEST_P(WeightsIoTest, WhatIsMissingExtraOrMisshapedIsNamedAtOnce) {
  const std::string dir = Saved();
  auto file = artifact::SafetensorsFile::Open(dir + "/model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<artifact::TensorToWrite> tensors = TensorsOf(**file);
  ASSERT_GT(tensors.size(), 2u);
  const std::string missing = tensors[0].name, misshaped = tensors[1].name;
  tensors[0].name = "stray.weight";
  tensors[1].shape.push_back(1);
  ASSERT_TRUE(artifact::WriteSafetensors(dir + "/model.safetensors", tensors).ok());
  const auto loaded = LoadModel(dir);
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(loaded.status().message()),
              testing::AllOf(HasSubstr("missing: " + missing), HasSubstr("misshaped: " + misshaped),
                             HasSubstr("extra: stray.weight")));
}

TEST_P(WeightsIoTest, ATiedHeadThatIsStoredTwiceIsTheEmbedding) {
  const std::string dir = Saved(), path = dir + "/model.safetensors";
  if (!model_->config().tie_word_embeddings) GTEST_SKIP() << "the head is not tied";
  const auto file = artifact::SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<artifact::TensorToWrite> tensors = TensorsOf(**file);
  const auto embedding = std::find_if(tensors.begin(), tensors.end(), [](const artifact::TensorToWrite& tensor) {
    return absl::EndsWith(tensor.name, "embed_tokens.weight") || absl::EndsWith(tensor.name, "wte.weight");
  });
  ASSERT_NE(embedding, tensors.end());
  artifact::TensorToWrite head = *embedding;
  head.name = "lm_head.weight";
  std::vector<uint8_t> other(head.data.begin(), head.data.end());
  tensors.push_back(head);
  ASSERT_TRUE(artifact::WriteSafetensors(path, tensors).ok());
  const auto loaded = LoadModel(dir);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(WeightsDigest(**loaded), WeightsDigest(*model_));
  other.back() ^= 1;
  tensors.back().data = other;
  ASSERT_TRUE(artifact::WriteSafetensors(path, tensors).ok());
  const absl::Status untied = LoadModel(dir).status();
  EXPECT_EQ(untied.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(untied.message()), HasSubstr("lm_head.weight with other values"));
  // A reward model has another head.
  LoadOptions reward;
  reward.head = HeadKind::kScalar;
  reward.init_missing_scalar_head = true;
  EXPECT_TRUE(LoadModel(dir, reward).ok());
}

TEST_P(WeightsIoTest, GenerationSettingsComeAlong) {
  const std::string dir = Saved();
  const auto settings = nlohmann::json::parse(ReadFile(dir + "/generation_config.json").value_or(""), nullptr, false);
  ASSERT_TRUE(settings.is_object());
  const nlohmann::json config = Golden("model.json")["models"][GetParam()]["config"];
  EXPECT_EQ(settings["eos_token_id"], config["eos_token_id"]);
  // A model's own settings are kept to the byte.
  const std::string source = dir_.File("source"), own = "{\"eos_token_id\": [2, 7], \"temperature\": 0.6}\n";
  ASSERT_TRUE(MakeDirs(source).ok());
  ASSERT_TRUE(WriteFileDurably(source + "/generation_config.json", own).ok());
  const std::string out = dir_.File("out");
  ASSERT_TRUE(SaveModel(*model_, out, source).ok());
  EXPECT_EQ(ReadFile(out + "/generation_config.json").value_or(""), own);
}

// Larger than what one thread copies at once, and than a part of a huge page.
TEST(LargeWeightsTest, AreLoadedBitForBit) {
  const auto config = artifact::ParseModelConfig(
      R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 40000, "hidden_size": 256,
          "intermediate_size": 3000, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
          "tie_word_embeddings": true, "rms_norm_eps": 1e-5})",
      "large model");
  ASSERT_TRUE(config.ok()) << config.status();
  Transformer model(*config, HeadKind::kLm, torch::kFloat32, torch::kCPU);
  model.InitRandom(3);
  const ScratchDir dir;
  ASSERT_TRUE(SaveModel(model, dir.File("model"), "", Durability::kCached).ok());
  for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
    LoadOptions options;
    options.dtype = dtype;
    const auto loaded = LoadModel(dir.File("model"), options);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    const auto& expected = model.named_parameters();
    ASSERT_EQ((*loaded)->named_parameters().size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(torch::equal((*loaded)->named_parameters()[i].second, expected[i].second.to(dtype)))
          << expected[i].first;
    }
  }
}

TEST(RewardNormalizationTest, IsTheIdentityWithoutAFileAndSurvivesOne) {
  ScratchDir dir;
  auto loaded = LoadRewardNormalization(dir.path());
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->shift, 0);
  EXPECT_EQ(loaded->scale, 1);
  ASSERT_TRUE(SaveRewardNormalization({.shift = 0.25, .scale = 3.5}, dir.path()).ok());
  loaded = LoadRewardNormalization(dir.path());
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->shift, 0.25);
  EXPECT_EQ(loaded->scale, 3.5);
  EXPECT_TRUE(loaded->heads.empty());
  const double output = 1.25;
  EXPECT_DOUBLE_EQ(loaded->Apply(&output), 3.5);
  ASSERT_TRUE(WriteFileDurably(dir.File("reward_normalization.json"), "{").ok());
  EXPECT_FALSE(LoadRewardNormalization(dir.path()).ok());
}

TEST(RewardNormalizationTest, HeadsAreWeighedAndTheSumIsNormalisedAgain) {
  ScratchDir dir;
  const RewardNormalization saved{.shift = 1, .scale = 2, .heads = {{"helpful", 3, 0.5, 2}, {"honest", -1, 0.25, 4}}};
  ASSERT_TRUE(SaveRewardNormalization(saved, dir.path()).ok());
  const auto loaded = LoadRewardNormalization(dir.path());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ(loaded->heads.size(), 2u);
  EXPECT_EQ(loaded->heads[1].criterion, "honest");
  const double outputs[] = {1.0, 0.75};  // normalised: 1 and 2
  EXPECT_DOUBLE_EQ(loaded->heads[0].Normalize(outputs[0]), 1);
  EXPECT_DOUBLE_EQ(loaded->Apply(outputs), (3 * 1 - 1 * 2 - 1) * 2);
  ASSERT_TRUE(WriteFileDurably(dir.File("reward_normalization.json"),
                               R"({"shift":0,"scale":1,"heads":[{"criterion":"a","weight":1,"shift":0,"scale":0}]})")
                  .ok());
  EXPECT_THAT(std::string(LoadRewardNormalization(dir.path()).status().message()), HasSubstr("heads"));
}

}  // namespace
}  // namespace rlhf::model
