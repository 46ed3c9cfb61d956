// Reward models on a tiny model, one rank; and what is said of them.
#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "artifact/prompt.h"
#include "learner/reward_model_trainer.h"
#include "tests/learner/trainer_fixture.h"

namespace rlhf::learner {
namespace {

using testing::HasSubstr;

using RewardModelTrainerTest = TrainerTest;

TEST_F(RewardModelTrainerTest, ARewardModelLearnsWhatIsPreferred) {
  std::string lines;
  for (int i = 0; i < 80; ++i) {
    lines += absl::StrCat("{\"prompt\":\"item ", i, "\",\"chosen\":\" good\",\"rejected\":\" bad\",\"category\":\"",
                          i % 2 == 0 ? "even" : "odd", "\",\"tags\":{\"pair\":\"good over bad\"}}\n");
  }
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), lines).ok());
  const v1::JobSpec job = RewardModelJob();
  // With adapters the scalar head trains along.
  v1::JobSpec adapted = job;
  adapted.mutable_reward_model()->mutable_lora()->set_rank(4);
  adapted.mutable_reward_model()->mutable_optimizer()->set_learning_rate(1e-2);
  auto lora = Make(adapted);
  ASSERT_TRUE(lora.ok()) << lora.status();
  for (int64_t step = 1; step <= (*lora)->total_steps(); ++step) ASSERT_TRUE((*lora)->RunStep(step, {}).ok());
  const std::string lora_out = dir_.File("lora-reward");
  ASSERT_TRUE(MakeDirs(lora_out).ok());
  const auto lora_metrics = (*lora)->Finish(lora_out);
  ASSERT_TRUE(lora_metrics.ok()) << lora_metrics.status();
  EXPECT_GT(lora_metrics->at("accuracy").value(), 0.95);
  EXPECT_TRUE(ReadFile(lora_out + "/adapter/adapter_config.json").ok());

  auto trainer = Make(job);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  for (int64_t step = 1; step <= (*trainer)->total_steps(); ++step) ASSERT_TRUE((*trainer)->RunStep(step, {}).ok());
  const std::string out = dir_.File("reward");
  ASSERT_TRUE(MakeDirs(out).ok());
  const auto metrics = (*trainer)->Finish(out);
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  EXPECT_GT(metrics->at("accuracy").value(), 0.95);
  EXPECT_GT(metrics->at("accuracy{pair=good over bad}").n(), 5);
  EXPECT_EQ(metrics->count("accuracy{category=odd}"), 1u);
  const auto normalization = model::LoadRewardNormalization(out);
  ASSERT_TRUE(normalization.ok());
  EXPECT_NE(normalization->scale, 1);
}

TEST_F(RewardModelTrainerTest, EveryCriterionHasAHeadOfItsOwn) {
  // Helpfulness and honesty disagree about every pair; half of the pairs say nothing about honesty.
  std::string lines;
  for (int i = 0; i < 80; ++i) {
    absl::StrAppend(&lines, "{\"prompt\":\"item ", i, "\",\"chosen\":\" good\",\"rejected\":\" bad\",\"ratings\":{",
                    i % 2 == 0 ? "\"honest\":[1,5]," : "", "\"helpful\":[5,2]}}\n");
  }
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), lines).ok());
  v1::JobSpec job = RewardModelJob();
  v1::RewardModelSpec* spec = job.mutable_reward_model();
  spec->set_criterion_heads(true);
  (*spec->mutable_criteria())["helpful"] = 2;
  (*spec->mutable_criteria())["honest"] = 0.5;
  auto trainer = Make(job);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  for (int64_t step = 1; step <= (*trainer)->total_steps(); ++step) {
    const auto result = (*trainer)->RunStep(step, {});
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(result->trained) << result->refusal;
  }
  const std::string out = dir_.File("reward");
  ASSERT_TRUE(MakeDirs(out).ok());
  const auto metrics = (*trainer)->Finish(out);
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  EXPECT_GT(metrics->at("accuracy{criterion=helpful}").value(), 0.95);
  EXPECT_GT(metrics->at("accuracy{criterion=honest}").value(), 0.95);
  EXPECT_LT(metrics->at("accuracy{criterion=honest}").n(), metrics->at("accuracy{criterion=helpful}").n());
  EXPECT_GT(metrics->at("accuracy").value(), 0.95) << "of the weighted heads: helpfulness counts four times as much";

  const auto normalization = model::LoadRewardNormalization(out);
  ASSERT_TRUE(normalization.ok()) << normalization.status();
  ASSERT_EQ(normalization->heads.size(), 2u);
  EXPECT_EQ(normalization->heads[0].criterion, "helpful");
  EXPECT_EQ(normalization->heads[0].weight, 2);
  EXPECT_EQ(normalization->heads[1].criterion, "honest");
  model::LoadOptions load;
  load.head = model::HeadKind::kScalar;
  const auto reward = model::LoadModel(out, load);
  ASSERT_TRUE(reward.ok()) << reward.status();
  ASSERT_TRUE(model::CheckRewardHeads(**reward, *normalization, out).ok());
  const auto tokenizer = artifact::Tokenizer::Load(out);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::vector<std::vector<int32_t>> sequences;
  for (const char* answer : {" good", " bad"}) {
    const auto tokens = artifact::EncodeForReward(**tokenizer, "item 7", {}, answer, 64);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    sequences.push_back(*tokens);
  }
  const std::vector<double> outputs = ScoreSequences(**reward, sequences, 8192);
  ASSERT_EQ(outputs.size(), 4u);
  EXPECT_GT(outputs[0], outputs[2]) << "good is the more helpful answer";
  EXPECT_LT(outputs[1], outputs[3]) << "bad is the more honest one";
  EXPECT_GT(normalization->Apply(&outputs[0]), normalization->Apply(&outputs[2]));

  // A critic takes the body, and a head of its own.
  load.init_missing_scalar_head = true;
  load.scalar_outputs = 1;
  const auto critic = model::LoadModel(out, load);
  ASSERT_TRUE(critic.ok()) << critic.status();
  EXPECT_EQ((*critic)->head_weight().size(0), 1);

  (*job.mutable_reward_model()->mutable_criteria())["kind"] = 1;
  EXPECT_THAT(std::string(Make(job).status().message()), HasSubstr("rated by \"kind\""));
}

TEST_F(RewardModelTrainerTest, TiesAreHalfLabelsUnlessTheyAreLeftOut) {
  std::string lines;
  for (int i = 0; i < 8; ++i) {
    absl::StrAppend(&lines, "{\"prompt\":\"item ", i, "\",\"chosen\":\" good\",\"rejected\":\" bad\"",
                    i % 2 == 0 ? ",\"tie\":true" : "", ",\"ratings\":{\"helpful\":[3,", i % 2 == 0 ? 3 : 1, "]}}\n");
  }
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), lines).ok());
  const auto check_first_step = [&](bool heads, bool leave_out) {
    v1::JobSpec job = RewardModelJob();
    v1::RewardModelSpec* spec = job.mutable_reward_model();
    spec->set_held_out_fraction(0);
    spec->set_epochs(1);
    spec->set_centering(0);
    spec->set_leave_out_ties(leave_out);
    if (heads) {
      spec->set_criterion_heads(true);
      (*spec->mutable_criteria())["helpful"] = 1;
    }
    auto trainer = Make(job);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    // What the step must find, by the plain formula on the model's own rewards.
    std::vector<std::vector<int32_t>> sequences;
    const auto tokenizer = artifact::Tokenizer::Load(dir_.File("model"));
    for (int i = 0; i < 8; ++i) {
      for (const char* answer : {" good", " bad"})
        sequences.push_back(*artifact::EncodeForReward(**tokenizer, absl::StrCat("item ", i), {}, answer, 64));
    }
    const std::vector<double> rewards = ScoreSequences((*trainer)->model(), sequences, 8192);
    double loss = 0, right = 0;
    for (size_t i = 0; i < 8; ++i) {
      const double d = rewards[2 * i] - rewards[2 * i + 1];
      const auto minus_log = [](double x) { return std::log1p(std::exp(-x)); };
      if (i % 2 == 1) loss += minus_log(d);
      if (i % 2 == 1 && d > 0) right += 1;
      if (i % 2 == 0 && !leave_out) loss += 0.5 * minus_log(d) + 0.5 * minus_log(-d);
    }
    // With a head for each criterion the comparison stays, as other criteria may decide it.
    const double pairs = leave_out && !heads ? 4 : 8;
    const auto result = (*trainer)->RunStep(1, {});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_NEAR(result->metrics.at("loss"), loss / pairs, 1e-5) << heads << leave_out;
    EXPECT_NEAR(result->metrics.at("accuracy"), right / 4, 1e-9) << heads << leave_out;
  };
  for (const bool heads : {false, true}) {
    for (const bool leave_out : {false, true}) check_first_step(heads, leave_out);
  }
  v1::JobSpec job = RewardModelJob();
  job.mutable_reward_model()->set_leave_out_ties(true);
  ASSERT_TRUE(
      WriteFileDurably(dir_.File("data.jsonl"), "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\",\"tie\":true}\n")
          .ok());
  EXPECT_THAT(std::string(Make(job).status().message()), HasSubstr("train on ties too"));
}

TEST_F(RewardModelTrainerTest, StrengthIsAMarginOfDecidedPairs) {
  std::string lines;
  const double strengths[] = {0, 1.0 / 3, 2.0 / 3, 1};
  for (int i = 0; i < 4; ++i) {
    absl::StrAppend(&lines, "{\"prompt\":\"item ", i,
                    "\",\"chosen\":\" good\",\"rejected\":\" bad\",\"strength\":", strengths[i], ",\"margin\":0.25",
                    i == 2 ? ",\"tie\":true" : "", "}\n");
  }
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), lines).ok());
  const auto tokenizer = artifact::Tokenizer::Load(dir_.File("model"));
  ASSERT_TRUE(tokenizer.ok());
  ComparisonOptions options;
  options.margin_by_strength = 3;
  const auto data = ComparisonData::Load(dir_.File("data.jsonl"), **tokenizer, 64, options);
  ASSERT_TRUE(data.ok()) << data.status();
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(data->training[static_cast<size_t>(i)].margin, 0.25 + i, 1e-4);

  v1::JobSpec job = RewardModelJob();
  v1::RewardModelSpec* spec = job.mutable_reward_model();
  spec->set_held_out_fraction(0);
  spec->set_centering(0);
  spec->set_margin_by_strength(3);
  auto trainer = Make(job);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  double loss = 0, square = 0;
  std::vector<torch::Tensor> parameters;
  for (const auto& [name, parameter] : (*trainer)->model().trained_parameters()) parameters.push_back(parameter);
  torch::Tensor total = torch::zeros({});
  for (size_t i = 0; i < 4; ++i) {
    const ComparisonPair& pair = data->training[i];
    const torch::Tensor rewards = SequenceRewards((*trainer)->model(), {pair.chosen, pair.rejected}).view({-1});
    const torch::Tensor d = rewards[0] - rewards[1], e = d - (0.25 + static_cast<double>(i));
    total = total + (i == 2 ? 0.5 * (torch::log1p(torch::exp(-d)) + torch::log1p(torch::exp(d)))
                            : torch::log1p(torch::exp(-e)));
  }
  loss = total.item<double>() / 4;
  for (const torch::Tensor& gradient : torch::autograd::grad({total / 4}, parameters, {}, {}, false, true)) {
    if (gradient.defined()) square += gradient.square().sum().item<double>();
  }
  const auto result = (*trainer)->RunStep(1, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_NEAR(result->metrics.at("loss"), loss, 1e-4);
  EXPECT_NEAR(result->metrics.at("grad_norm"), std::sqrt(square), 1e-3 * std::sqrt(square));

  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"),
                               "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\",\"strength\":2}\n")
                  .ok());
  EXPECT_THAT(std::string(Make(job).status().message()), HasSubstr("strength 2; expected 0 to 1"));
}

TEST(RewardModelMetricsTest, TiesCountInTheLogLossAloneAsHalves) {
  std::vector<ComparisonPair> pairs(4);
  pairs[3].tie = true;
  const auto metrics = RewardModelMetrics(pairs, {2.0, -1.0, 3.0, 5.0});
  EXPECT_NEAR(metrics.at("accuracy").value(), 2.0 / 3, 1e-12);
  EXPECT_EQ(metrics.at("accuracy").n(), 3);
  const auto minus_log = [](double x) { return std::log1p(std::exp(-x)); };
  EXPECT_NEAR(metrics.at("log_loss").value(),
              (minus_log(2) + minus_log(-1) + minus_log(3) + 0.5 * minus_log(5) + 0.5 * minus_log(-5)) / 4, 1e-12);
  EXPECT_EQ(metrics.at("log_loss").n(), 4);
  EXPECT_NEAR(RewardModelMetrics({ComparisonPair()}, {0.0}).at("log_loss").value(), std::log(2.0), 1e-12);
  const auto one = RewardModelMetrics({ComparisonPair()}, {1.0});
  EXPECT_EQ(one.at("accuracy").value(), 1);
  EXPECT_LT(one.at("accuracy").low(), 0.25) << "one pair is not certainty";
  EXPECT_FALSE(one.at("log_loss").has_low());
  const auto ties = RewardModelMetrics({pairs[3]}, {1.0});
  EXPECT_EQ(ties.count("accuracy"), 0u) << "nothing to be right about";
  EXPECT_EQ(ties.count("baseline.length.accuracy"), 0u);
}

TEST(CombineRatingsTest, WeightsDecideWhichAnswerIsBetter) {
  artifact::ComparisonRecord record;
  record.chosen = "a";
  record.rejected = "b";
  record.ratings = {{"helpful", {5, 2}}, {"honest", {1, 4}}};
  CombineRatings({}, &record);
  EXPECT_EQ(record.chosen, "a");
  CombineRatings({{"helpful", 1}, {"funny", 9}}, &record);
  EXPECT_EQ(record.chosen, "a") << "without a rating the preference stands";
  CombineRatings({{"helpful", 1}, {"honest", 1}}, &record);
  EXPECT_TRUE(record.tie);
  record.margin = record.strength = 0.5;
  CombineRatings({{"helpful", 2}, {"honest", 1}}, &record);
  EXPECT_EQ(record.strength, 0.5) << "the ratings say what the preference says";
  CombineRatings({{"helpful", 1}, {"honest", 2}}, &record);
  EXPECT_EQ(record.chosen, "b");
  EXPECT_EQ(record.strength + record.margin, 0) << "they were of the preference";
  EXPECT_EQ(record.ratings.at("honest").first, 4) << "the ratings turn round with the answers";
  EXPECT_FALSE(record.tie);
}

TEST(CombineRatingsTest, SumsThatAreEqualAreATieWhateverTheWeightsRoundTo) {
  // Every difference of whole ratings, with weights that no double is exactly equal to.
  int ties = 0;
  for (int a = -10; a <= 10; ++a) {
    for (int b = -10; b <= 10; ++b) {
      for (int c = -10; c <= 10; ++c) {
        artifact::ComparisonRecord record;
        record.chosen = "a";
        record.ratings = {{"a", {std::max(a, 0), std::max(-a, 0)}},
                          {"b", {std::max(b, 0), std::max(-b, 0)}},
                          {"c", {std::max(c, 0), std::max(-c, 0)}}};
        CombineRatings({{"a", 0.7}, {"b", 0.2}, {"c", 0.1}}, &record);
        const int tenths = 7 * a + 2 * b + c;
        EXPECT_EQ(record.tie, tenths == 0) << a << " " << b << " " << c;
        EXPECT_EQ(record.chosen.empty(), tenths < 0) << a << " " << b << " " << c;
        ties += tenths == 0 ? 1 : 0;
      }
    }
  }
  EXPECT_EQ(ties, 63);
}

TEST(RewardModelMetricsTest, AModelThatOnlyCountsWordsIsSeenAsSuch) {
  // In three of four pairs the longer answer was preferred; the model gives every token one point.
  std::vector<ComparisonPair> pairs(40);
  std::vector<double> differences;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const bool longer = i % 4 != 0;
    pairs[i].chosen.resize(longer ? 10 : 4);
    pairs[i].rejected.resize(7);
    pairs[i].slices = {longer ? "kind=longer" : "kind=shorter"};
    differences.push_back(longer ? 3 : -3);
  }
  const auto metrics = RewardModelMetrics(pairs, differences);
  EXPECT_DOUBLE_EQ(metrics.at("accuracy").value(), 0.75);
  EXPECT_DOUBLE_EQ(metrics.at("baseline.length.accuracy").value(), 0.75);
  EXPECT_DOUBLE_EQ(metrics.at("baseline.random.accuracy").value(), 0.5);
  EXPECT_DOUBLE_EQ(metrics.at("accuracy{against length}").value(), 0);
  EXPECT_NEAR(metrics.at("length_correlation").value(), 1, 1e-12);
  EXPECT_GT(metrics.at("log_loss{kind=shorter}").value(), 3);
  // All are in the surest bin: people agreed in 75 % of them.
  EXPECT_DOUBLE_EQ(metrics.at("calibration/9").value(), 0.75);
  EXPECT_NEAR(metrics.at("calibration.confidence/9").value(), 1 / (1 + std::exp(-3.0)), 1e-12);
  EXPECT_NEAR(metrics.at("ece").value(), 1 / (1 + std::exp(-3.0)) - 0.75, 1e-12);
  // By slice: right in all of the one, wrong in all of the other, equally sure.
  EXPECT_NEAR(metrics.at("ece{kind=longer}").value(), 1 - 1 / (1 + std::exp(-3.0)), 1e-12);
  EXPECT_NEAR(metrics.at("ece{kind=shorter}").value(), 1 / (1 + std::exp(-3.0)), 1e-12);
  EXPECT_EQ(metrics.at("ece{kind=shorter}").n(), 10);
  EXPECT_EQ(metrics.count("calibration/9{kind=shorter}"), 0u) << "bins are of all pairs";
}

}  // namespace
}  // namespace rlhf::learner
