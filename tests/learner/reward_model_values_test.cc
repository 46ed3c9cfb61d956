// What a reward model's trainer computes, number by number, against the same by hand.
#include <cmath>
#include <set>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "artifact/prompt.h"
#include "learner/comparison_data.h"
#include "tests/learner/given_samples.h"

namespace rlhf::learner {
namespace {

class RewardModelValuesTest : public TinyJobTest {
 protected:
  void SetUp() override {
    TinyJobTest::SetUp();
    tokenizer_ = *artifact::Tokenizer::Load(dir_.File("model"));
    std::string lines;
    for (int i = 0; i < kPairs; ++i) {
      absl::StrAppend(
          &lines, "{\"prompt\":\"item ", i,
          "\",\"chosen\":\" good\",\"rejected\":\" bad\",\"ratings\":{\"helpful\":[5,2],\"honest\":[1,5]}}\n");
    }
    ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), lines).ok());
  }
  static v1::JobSpec Job(bool heads) {
    v1::JobSpec job;
    v1::RewardModelSpec* spec = job.mutable_reward_model();
    spec->set_model("model");
    spec->set_data("data");
    spec->set_epochs(1);
    spec->set_batch_size(kPairs);
    spec->set_micro_batch_tokens(40);
    Complete(spec->mutable_optimizer(), 3e-3);
    if (heads) {
      spec->set_criterion_heads(true);
      (*spec->mutable_criteria())["helpful"] = 2;
      (*spec->mutable_criteria())["honest"] = 0.5;
    }
    return job;
  }
  std::vector<int32_t> Encode(const std::string& prompt, const std::string& response) const {
    std::vector<int32_t> tokens = *tokenizer_->Encode(prompt);
    const std::vector<int32_t> answer = *tokenizer_->Encode(response, {.add_special_tokens = false});
    tokens.insert(tokens.end(), answer.begin(), answer.end());
    tokens.push_back(*tokenizer_->eos_id());
    return tokens;
  }
  // The outputs at a sequence's last token: one, or one a criterion; with gradient where that is enabled.
  static torch::Tensor Outputs(const model::Transformer& model, const std::vector<int32_t>& tokens) {
    const torch::Tensor hidden = model.Hidden(model::PackedBatch::FromSequences({tokens}));
    return model.Scalar(hidden.narrow(0, hidden.size(0) - 1, 1)).view({-1});
  }
  static void ExpectStandard(const std::vector<double>& values, const std::string& what) {
    double mean = 0, squares = 0;
    for (const double value : values) mean += value / static_cast<double>(values.size());
    for (const double value : values) squares += (value - mean) * (value - mean);
    EXPECT_NEAR(mean, 0, 1e-4) << what;
    EXPECT_NEAR(std::sqrt(squares / static_cast<double>(values.size() - 1)), 1, 1e-4) << what;
  }

  static constexpr int kPairs = 8;
  std::unique_ptr<artifact::Tokenizer> tokenizer_;
};

TEST_F(RewardModelValuesTest, ScoresOfWhatNormalisesHaveMeanZeroAndDeviationOne) {
  std::vector<std::vector<int32_t>> of_pairs, of_samples;
  for (int i = 0; i < kPairs; ++i) {
    for (const char* answer : {" good", " bad"}) of_pairs.push_back(Encode(absl::StrCat("item ", i), answer));
  }
  // Whatever ended them.
  std::string samples;
  for (const char* reason : {"END_OF_TEXT", "STOP_TEXT", "MAX_TOKENS", ""}) {
    absl::StrAppend(&samples, "{\"prompt\":\"the cat\",\"response\":\" sat on ", of_samples.size(), "\"",
                    *reason == '\0' ? "" : absl::StrCat(",\"finish_reason\":\"", reason, "\""), "}\n");
    of_samples.push_back(Encode("the cat", absl::StrCat(" sat on ", of_samples.size())));
  }
  ASSERT_TRUE(WriteFileDurably(dir_.File("samples.jsonl"), samples).ok());
  for (const bool heads : {false, true}) {
    for (const bool by_samples : {false, true}) {
      const std::string what = absl::StrCat(heads ? "heads" : "one output", by_samples ? ", samples" : ", pairs");
      v1::JobSpec job = Job(heads);
      if (by_samples) job.mutable_reward_model()->set_normalization_samples("samples");
      auto trainer = Make(job);
      ASSERT_TRUE(trainer.ok()) << trainer.status();
      ASSERT_TRUE((*trainer)->RunStep(1, {}).ok());
      const std::string out = dir_.File(absl::StrCat("out", heads, by_samples));
      ASSERT_TRUE(MakeDirs(out).ok());
      const auto finished = (*trainer)->Finish(out);
      ASSERT_TRUE(finished.ok()) << finished.status();
      const auto normalization = model::LoadRewardNormalization(out);
      ASSERT_TRUE(normalization.ok()) << normalization.status();
      model::LoadOptions load;
      load.head = model::HeadKind::kScalar;
      const auto reward = model::LoadModel(out, load);
      ASSERT_TRUE(reward.ok()) << reward.status();
      const torch::NoGradGuard no_grad;
      std::vector<double> totals;
      std::vector<std::vector<double>> by_head(normalization->heads.size());
      for (const std::vector<int32_t>& tokens : by_samples ? of_samples : of_pairs) {
        const torch::Tensor raw = Outputs(**reward, tokens).to(torch::kFloat64).contiguous();
        ASSERT_EQ(raw.numel(), heads ? 2 : 1);
        totals.push_back(normalization->Apply(raw.data_ptr<double>()));
        for (size_t h = 0; h < by_head.size(); ++h)
          by_head[h].push_back(normalization->heads[h].Normalize(raw.data_ptr<double>()[h]));
      }
      ExpectStandard(totals, what);
      for (size_t h = 0; h < by_head.size(); ++h)
        ExpectStandard(by_head[h], absl::StrCat(what, ", ", normalization->heads[h].criterion));
    }
  }
}

TEST_F(RewardModelValuesTest, OfAnAnswerThatFillsTheContextTheLastTokenGivesWayToTheEnd) {
  const auto load = [&](int64_t context, bool ends = true) {
    const auto data = ComparisonData::Load(dir_.File("data.jsonl"), *tokenizer_, context, {});
    EXPECT_EQ(data.ok(), ends) << data.status();
    return data.ok() ? data->training : std::vector<ComparisonPair>();
  };
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"),
                               "{\"prompt\":\"the cat\",\"chosen\":\" sat on the mat\",\"rejected\":\" sat\"}\n")
                  .ok());
  const std::vector<int32_t> whole = Encode("the cat", " sat on the mat"), shorter = Encode("the cat", " sat");
  const auto size = static_cast<int64_t>(whole.size());
  ASSERT_GT(size, static_cast<int64_t>(shorter.size()) + 1);
  const int32_t end = *tokenizer_->eos_id();
  EXPECT_EQ(load(size).at(0).chosen, whole);
  std::vector<int32_t> cut(whole.begin(), whole.end() - 2);
  cut.push_back(end);
  const auto fills = load(size - 1);
  EXPECT_EQ(fills.at(0).chosen, cut);
  EXPECT_EQ(fills.at(0).rejected, shorter);
  load(size - 2, /*ends=*/false);
  // A prompt does not give way: without an answer there is nothing to read.
  const std::vector<int32_t> prompt = *tokenizer_->Encode("the cat");
  EXPECT_EQ(artifact::EndForReward(*tokenizer_, prompt, {}, static_cast<int64_t>(prompt.size())).size(),
            prompt.size() + 1);
}

TEST_F(RewardModelValuesTest, WhatIsMeasuredOfHeadsIsTheRewardThatIsScored) {
  // One head's outputs are twenty times as large as the other's, which counts four times as much: in the reward, where
  // every head is normalised, the smaller one decides.
  model::LoadOptions load;
  load.head = model::HeadKind::kScalar;
  load.init_missing_scalar_head = true;
  load.scalar_outputs = 2;
  auto start = model::LoadModel(dir_.File("model"), load);
  ASSERT_TRUE(start.ok()) << start.status();
  const torch::NoGradGuard no_grad;
  for (const auto& [name, parameter] : (*start)->trained_parameters()) {
    if (parameter.is_same((*start)->head_weight())) parameter.select(0, 1).mul_(20);
  }
  ASSERT_TRUE(MakeDirs(dir_.File("start")).ok());
  ASSERT_TRUE(model::SaveModel(**start, dir_.File("start"), dir_.File("model")).ok());
  std::string lines;
  for (int i = 0; i < 80; ++i) {
    absl::StrAppend(&lines, "{\"prompt\":\"item ", i, "\",\"chosen\":\" good ", i, "\",\"rejected\":\" bad ", 97 * i,
                    "\",\"ratings\":{\"helpful\":[5,2],\"honest\":[4,5]}}\n");
  }
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), lines).ok());
  v1::JobSpec job = Job(true);
  v1::RewardModelSpec* spec = job.mutable_reward_model();
  spec->set_held_out_fraction(0.5);
  TrainerInputs inputs;
  inputs.spec = job;
  inputs.local = {{"model", dir_.File("start")}, {"data", dir_.File("data.jsonl")}};
  auto trainer = Trainer::Create(inputs);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  (*trainer)->SetCollective(alone_.get());
  ASSERT_TRUE(MakeDirs(dir_.File("out")).ok());
  const auto metrics = (*trainer)->Finish(dir_.File("out"));
  ASSERT_TRUE(metrics.ok()) << metrics.status();

  const auto normalization = model::LoadRewardNormalization(dir_.File("out"));
  ASSERT_TRUE(normalization.ok()) << normalization.status();
  EXPECT_GT(normalization->heads[0].scale, 5 * normalization->heads[1].scale);
  const auto data =
      ComparisonData::Load(dir_.File("data.jsonl"), *tokenizer_, 64,
                           {.held_out_fraction = 0.5, .criteria = {{"helpful", 2}, {"honest", 0.5}}, .heads = true});
  ASSERT_TRUE(data.ok()) << data.status();
  double right = 0, by_outputs = 0;
  for (const ComparisonPair& pair : data->held_out) {
    const std::vector<double> outputs = ScoreSequences((*trainer)->model(), {pair.chosen, pair.rejected}, 8192);
    right += normalization->Apply(&outputs[0]) > normalization->Apply(&outputs[2]) ? 1 : 0;
    by_outputs += 2 * (outputs[0] - outputs[2]) + 0.5 * (outputs[1] - outputs[3]) > 0 ? 1 : 0;
  }
  ASSERT_NE(right, by_outputs) << "these data tell nothing";
  EXPECT_DOUBLE_EQ(metrics->at("accuracy").value(), right / static_cast<double>(data->held_out.size()));
}

TEST_F(RewardModelValuesTest, APromptsComparisonsAreAllOnOneSideOfTheSplit) {
  std::string lines;
  for (int i = 0; i < 40; ++i) {
    absl::StrAppend(&lines, "{\"prompt\":\"item ", i % 10, "\",\"chosen\":\" good ", i,
                    "\",\"rejected\":\" bad\",\"tags\":{\"item\":\"", i % 10, "\"}}\n");
  }
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), lines).ok());
  std::set<std::set<std::string>> splits;
  size_t held_out = 0;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const auto data =
        ComparisonData::Load(dir_.File("data.jsonl"), *tokenizer_, 64, {.held_out_fraction = 0.3, .seed = seed});
    ASSERT_TRUE(data.ok()) << data.status();
    std::set<std::string> trained, held;
    for (const ComparisonPair& pair : data->training) trained.insert(pair.slices.begin(), pair.slices.end());
    for (const ComparisonPair& pair : data->held_out) held.insert(pair.slices.begin(), pair.slices.end());
    EXPECT_EQ(trained.size() + held.size(), 10u) << "of seed " << seed << " a prompt is on both sides";
    EXPECT_EQ(data->training.size(), 4 * trained.size());
    EXPECT_EQ(data->held_out.size(), 4 * held.size());
    splits.insert(held);
    held_out += held.size();
  }
  EXPECT_GT(splits.size(), 5u) << "the seed decides";
  EXPECT_GT(held_out, 15u);
  EXPECT_LT(held_out, 45u);
}

TEST_F(RewardModelValuesTest, SeveralJudgementsOfAPromptMakeNoIntervalNarrower) {
  // What the model says of forty prompts is known no better when four raters judged each of them alike.
  const auto measured = [&](int copies) {
    std::string lines;
    for (int i = 0; i < 80; ++i) {
      for (int copy = 0; copy < copies; ++copy) {
        absl::StrAppend(&lines, "{\"prompt\":\"item ", i, "\",\"chosen\":\" good ", i, "\",\"rejected\":\" bad ",
                        97 * i, "\",\"category\":\"", i % 2 == 0 ? "even" : "odd",
                        "\",\"ratings\":{\"helpful\":[5,2],\"honest\":[4,5]}}\n");
      }
    }
    EXPECT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), lines).ok());
    v1::JobSpec job = Job(true);
    job.mutable_reward_model()->set_held_out_fraction(0.5);
    auto trainer = Make(job);
    EXPECT_TRUE(trainer.ok()) << trainer.status();
    EXPECT_TRUE(MakeDirs(dir_.File("out")).ok());
    auto metrics = (*trainer)->Finish(dir_.File("out"));
    EXPECT_TRUE(metrics.ok()) << metrics.status();
    return *std::move(metrics);
  };
  const auto once = measured(1), often = measured(4);
  int intervals = 0;
  for (const auto& [name, metric] : once) {
    if (!metric.has_low()) continue;
    SCOPED_TRACE(name);
    const v1::Metric& other = often.at(name);
    EXPECT_EQ(other.n(), 4 * metric.n());
    EXPECT_NEAR(other.value(), metric.value(), 1e-5);
    const double width = metric.high() - metric.low();
    EXPECT_NEAR(other.high() - other.low(), width, 0.25 * width);
    ++intervals;
  }
  EXPECT_GE(intervals, 9) << "accuracy and log-loss, by category too, the baselines, and each criterion's";
}

TEST_F(RewardModelValuesTest, CenteringDrawsRewardsTowardsZero) {
  for (const bool heads : {false, true}) {
    v1::JobSpec job = Job(heads);
    job.mutable_reward_model()->set_centering(0.5);
    auto trainer = Make(job);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    const model::Transformer& model = (*trainer)->model();
    torch::Tensor loss = torch::zeros({});
    for (int i = 0; i < kPairs; ++i) {
      const torch::Tensor chosen = Outputs(model, Encode(absl::StrCat("item ", i), " good")),
                          rejected = Outputs(model, Encode(absl::StrCat("item ", i), " bad"));
      for (int64_t output = 0; output < chosen.numel(); ++output) {
        const torch::Tensor c = chosen[output], r = rejected[output];
        const torch::Tensor d = output == 0 ? c - r : r - c;  // the second is honesty, by which the other was better
        loss = loss + torch::log1p(torch::exp(-d)) + 0.5 * 0.5 * (c * c + r * r);
      }
    }
    loss = loss / (heads ? 2 * kPairs : kPairs);
    const double norm = GradientNorm(loss, model);
    const auto result = (*trainer)->RunStep(1, {});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_NEAR(result->metrics.at("loss"), loss.item<double>(), 1e-4) << heads;
    EXPECT_NEAR(result->metrics.at("grad_norm"), norm, 1e-3 * norm) << heads;
  }
}

}  // namespace
}  // namespace rlhf::learner
