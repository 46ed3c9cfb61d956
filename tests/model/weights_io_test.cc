#include "model/weights_io.h"

#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/durable_file.h"
#include "tests/model/formula_model.h"
#include "tests/testing/scratch_dir.h"

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
  ScratchDir dir_;
  std::unique_ptr<Transformer> model_;
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
