// Scores of real (tiny) models against the same computed by hand.
#include "reward_server/scorer.h"

#include <cmath>
#include <thread>

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "artifact/artifact_root.h"
#include "common/unsuited.h"
#include "model/log_probs.h"
#include "reward_server/batcher.h"
#include "rlhf/v1/reward_service.grpc.pb.h"
#include "tests/testing/loopback_server.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::reward {
namespace {

class ScorerTest : public testing::Test {
 protected:
  void SetUp() override {
    artifact::ArtifactRoot root(dir_.File("root"));
    policy_ = root.Publish(MakeTinyModel(dir_.File("policy"), 1))->digest;
    model::LoadOptions options;
    options.head = model::HeadKind::kScalar;
    options.init_missing_scalar_head = true;
    const auto reward = model::LoadModel(dir_.File("policy"), options);
    ASSERT_TRUE(reward.ok()) << reward.status();
    ASSERT_TRUE(MakeDirs(dir_.File("reward")).ok());
    ASSERT_TRUE(model::SaveModel(**reward, dir_.File("reward"), dir_.File("policy")).ok());
    ASSERT_TRUE(model::SaveRewardNormalization({.shift = 0.5, .scale = 2}, dir_.File("reward")).ok());
    reward_ = root.Publish(dir_.File("reward"))->digest;
    cache_ = std::make_unique<client::ArtifactCache>(dir_.File("root"), dir_.File("cache"), nullptr);
    scorer_ = std::make_unique<Scorer>(cache_.get(), ScorerOptions());
    for (const std::vector<int32_t>& response : std::vector<std::vector<int32_t>>{{70, 80, 2}, {75}}) {
      v1::Sample& sample = *request_.add_samples();
      for (const int32_t token : {1, 100, 110}) sample.add_prompt_tokens(token);
      sample.mutable_response_tokens()->Add(response.begin(), response.end());
      sample.set_response_text("ab");
    }
    request_.set_tokenizer(policy_);
    request_.set_temperature(0.7);
  }
  v1::RewardComponent* AddComponent(const std::string& name, double weight) {
    v1::RewardComponent* component = request_.mutable_scorer()->add_components();
    component->set_name(name);
    component->set_weight(weight);
    return component;
  }
  static std::vector<int32_t> Tokens(const v1::Sample& sample) {
    std::vector<int32_t> tokens(sample.prompt_tokens().begin(), sample.prompt_tokens().end());
    tokens.insert(tokens.end(), sample.response_tokens().begin(), sample.response_tokens().end());
    return tokens;
  }

  ScratchDir dir_;
  std::string policy_, reward_;
  std::unique_ptr<client::ArtifactCache> cache_;
  std::unique_ptr<Scorer> scorer_;
  v1::ScoreRequest request_;
};

TEST_F(ScorerTest, TheTotalIsTheWeightedSumOfNormalisedRewardAndRules) {
  AddComponent("model", 0.5)->mutable_reward_model()->set_model(reward_);
  AddComponent("rule", 3)->mutable_regex()->set_pattern("ab");
  request_.mutable_scorer()->mutable_components(1)->mutable_regex()->set_match(1);
  request_.set_reference_policy(policy_);
  const v1::ScoreResponse response = scorer_->Score(request_);
  ASSERT_EQ(response.scores_size(), 2);
  model::LoadOptions options;
  options.head = model::HeadKind::kScalar;
  const auto reward = model::LoadModel(dir_.File("reward"), options);
  const auto policy = model::LoadModel(dir_.File("policy"));
  ASSERT_TRUE(reward.ok() && policy.ok());
  const torch::NoGradGuard no_grad;
  for (int i = 0; i < 2; ++i) {
    const v1::SampleScore& score = response.scores(i);
    ASSERT_EQ(score.code(), 0) << score.error();
    std::vector<int32_t> tokens = Tokens(request_.samples(i));
    const model::PackedBatch batch = model::PackedBatch::FromSequences({tokens});
    if (tokens.back() != 2) tokens.push_back(2);
    const torch::Tensor hidden = (*reward)->Hidden(model::PackedBatch::FromSequences({tokens}));
    const double normalised = ((*reward)->Scalar(hidden.narrow(0, hidden.size(0) - 1, 1)).item<double>() - 0.5) * 2;
    EXPECT_NEAR(score.score().components(0).value(), normalised, 1e-5);
    EXPECT_NEAR(score.score().total(), 0.5 * normalised + 3, 1e-5);
    const model::ResponseIndex index = model::IndexResponses(batch, {3});
    const torch::Tensor expected =
        model::ChunkedLogProbs(**policy, (*policy)->Hidden(batch).index_select(0, index.rows), index.targets, 0.7)
            .log_probs;
    ASSERT_EQ(score.score().reference_log_probs_size(), expected.numel());
    for (int t = 0; t < expected.numel(); ++t)
      EXPECT_NEAR(score.score().reference_log_probs(t), expected[t].item<double>(), 1e-4);
  }
}

// A reward model learned from answers that all end with its end of text.
TEST_F(ScorerTest, EveryAnswerIsReadAtTheRewardModelsEndOfText) {
  // A policy that ends texts by other tokens too: the same tokenizer, other settings.
  const std::string chat = dir_.File("chat");
  const auto model = model::LoadModel(dir_.File("policy"));
  ASSERT_TRUE(model.ok() && MakeDirs(chat).ok());
  ASSERT_TRUE(model::SaveModel(**model, chat, dir_.File("policy")).ok());
  ASSERT_TRUE(WriteFileDurably(chat + "/generation_config.json", "{\"eos_token_id\": [2, 90]}").ok());
  request_.set_tokenizer(artifact::ArtifactRoot(dir_.File("root")).Publish(chat)->digest);
  request_.set_reference_policy(policy_);
  AddComponent("model", 1)->mutable_reward_model()->set_model(reward_);
  request_.clear_samples();
  const auto add = [&](std::vector<int32_t> response, v1::FinishReason reason) {
    v1::Sample& sample = *request_.add_samples();
    for (const int32_t token : {1, 100, 110}) sample.add_prompt_tokens(token);
    sample.mutable_response_tokens()->Add(response.begin(), response.end());
    sample.set_finish_reason(reason);
  };
  add({70, 80, 2}, v1::END_OF_TEXT);
  add({70, 80, 90}, v1::END_OF_TEXT);
  add({70, 80}, v1::STOP_TEXT);
  add({70, 80}, v1::MAX_TOKENS);
  // Cut by the context: its last token gives way.
  std::vector<int32_t> longest(61, 75);
  longest.front() = 70;
  add(longest, v1::MAX_TOKENS);
  longest.back() = 2;
  add(longest, v1::END_OF_TEXT);
  const v1::ScoreResponse response = scorer_->Score(request_);
  for (int i = 0; i < 6; ++i) {
    ASSERT_EQ(response.scores(i).code(), 0) << response.scores(i).error();
    const double expected = response.scores(i < 4 ? 0 : 5).score().total();
    EXPECT_NEAR(response.scores(i).score().total(), expected, 1e-5) << i;
    // What the reference says is of the sample's own tokens.
    const std::vector<int32_t> tokens = Tokens(request_.samples(i));
    const torch::NoGradGuard no_grad;
    const model::PackedBatch batch = model::PackedBatch::FromSequences({tokens});
    const model::ResponseIndex index = model::IndexResponses(batch, {3});
    const torch::Tensor own =
        model::ChunkedLogProbs(**model, (*model)->Hidden(batch).index_select(0, index.rows), index.targets, 0.7)
            .log_probs;
    ASSERT_EQ(response.scores(i).score().reference_log_probs_size(), own.numel()) << i;
    for (int t = 0; t < own.numel(); ++t)
      EXPECT_NEAR(response.scores(i).score().reference_log_probs(t), own[t].item<double>(), 1e-4) << i << ", " << t;
  }
  ASSERT_GT(std::abs(response.scores(0).score().total() - response.scores(5).score().total()), 1e-4);
}

TEST_F(ScorerTest, ARewardModelWithAnotherVocabularyReadsTheTextAndItsEnd) {
  ASSERT_TRUE(MakeDirs(dir_.File("tokenizer")).ok() && MakeDirs(dir_.File("other")).ok());
  ASSERT_TRUE(artifact::TrainByteLevelBpe({dir_.File("policy") + "-text.txt"}, 264, dir_.File("tokenizer")).ok());
  model::LoadOptions options;
  options.head = model::HeadKind::kScalar;
  const auto reward = model::LoadModel(dir_.File("reward"), options);
  ASSERT_TRUE(reward.ok()) << reward.status();
  ASSERT_TRUE(model::SaveModel(**reward, dir_.File("other"), dir_.File("tokenizer")).ok());
  ASSERT_TRUE(model::SaveRewardNormalization({.shift = 0.5, .scale = 2}, dir_.File("other")).ok());
  artifact::ArtifactRoot root(dir_.File("root"));
  AddComponent("model", 1)->mutable_reward_model()->set_model(root.Publish(dir_.File("other"))->digest);
  const auto own = artifact::Tokenizer::Load(dir_.File("other")),
             policys = artifact::Tokenizer::Load(dir_.File("policy"));
  ASSERT_TRUE(own.ok() && policys.ok()) << own.status();
  const auto encode = [](const artifact::Tokenizer& tokenizer, bool ended) {
    std::vector<int32_t> tokens = *tokenizer.Encode("the cat");
    const std::vector<int32_t> answer = *tokenizer.Encode(" sat on the mat", {.add_special_tokens = false});
    tokens.insert(tokens.end(), answer.begin(), answer.end());
    if (ended) tokens.push_back(*tokenizer.eos_id());
    return tokens;
  };
  EXPECT_NE(encode(**own, true), encode(**policys, true));
  request_.clear_samples();
  const std::vector<v1::FinishReason> reasons = {v1::END_OF_TEXT, v1::STOP_TEXT, v1::MAX_TOKENS};
  for (const v1::FinishReason reason : reasons) {
    v1::Sample& sample = *request_.add_samples();
    sample.mutable_prompt()->set_text("the cat");
    sample.set_response_text(" sat on the mat");
    sample.set_finish_reason(reason);
    sample.add_prompt_tokens(1);
    const std::vector<int32_t> tokens = encode(**policys, reason == v1::END_OF_TEXT);
    sample.mutable_response_tokens()->Add(tokens.begin() + 1, tokens.end());
  }
  const v1::ScoreResponse response = scorer_->Score(request_);
  const torch::NoGradGuard no_grad;
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(response.scores(i).code(), 0) << response.scores(i).error();
    const torch::Tensor hidden = (*reward)->Hidden(model::PackedBatch::FromSequences({encode(**own, true)}));
    const double raw = (*reward)->Scalar(hidden.narrow(0, hidden.size(0) - 1, 1)).item<double>();
    EXPECT_NEAR(response.scores(i).score().total(), (raw - 0.5) * 2, 1e-5) << i;
  }
}

TEST_F(ScorerTest, HeadsByCriterionAreRecordedAndMayBeWeighedAnew) {
  model::LoadOptions options;
  options.head = model::HeadKind::kScalar;
  options.init_missing_scalar_head = true;
  options.scalar_outputs = 2;
  const auto reward = model::LoadModel(dir_.File("policy"), options);
  ASSERT_TRUE(reward.ok()) << reward.status();
  const std::string dir = dir_.File("heads");
  ASSERT_TRUE(MakeDirs(dir).ok());
  ASSERT_TRUE(model::SaveModel(**reward, dir, dir_.File("policy")).ok());
  const model::RewardNormalization normalization{
      .shift = 0.5, .scale = 2, .heads = {{"helpful", 2, 0.1, 3}, {"honest", -1, 0.2, 4}}};
  ASSERT_TRUE(model::SaveRewardNormalization(normalization, dir).ok());
  artifact::ArtifactRoot root(dir_.File("root"));
  const std::string digest = root.Publish(dir)->digest;

  AddComponent("model", 1)->mutable_reward_model()->set_model(digest);
  v1::RewardModelComponent* honest = AddComponent("honest", 1)->mutable_reward_model();
  honest->set_model(digest);
  (*honest->mutable_criteria())["honest"] = 3;
  const v1::ScoreResponse response = scorer_->Score(request_);
  ASSERT_EQ(response.scores_size(), 2);
  const torch::NoGradGuard no_grad;
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(response.scores(i).code(), 0) << response.scores(i).error();
    std::vector<int32_t> tokens = Tokens(request_.samples(i));
    if (tokens.back() != 2) tokens.push_back(2);
    const torch::Tensor hidden = (*reward)->Hidden(model::PackedBatch::FromSequences({tokens}));
    const torch::Tensor raw =
        (*reward)->Scalar(hidden.narrow(0, hidden.size(0) - 1, 1)).to(torch::kFloat64).contiguous();
    const double helpful = (raw.data_ptr<double>()[0] - 0.1) * 3, honesty = (raw.data_ptr<double>()[1] - 0.2) * 4;
    std::map<std::string, double> found;
    for (const auto& component : response.scores(i).score().components()) found[component.name()] = component.value();
    EXPECT_NEAR(found["model"], (2 * helpful - honesty - 0.5) * 2, 1e-4);
    EXPECT_NEAR(found["model/helpful"], helpful, 1e-5);
    EXPECT_NEAR(found["model/honest"], honesty, 1e-5);
    EXPECT_NEAR(found["honest"], 3 * honesty, 1e-4);
    EXPECT_NEAR(response.scores(i).score().total(), found["model"] + found["honest"], 1e-6) << "parts count nothing";
  }
  (*request_.mutable_scorer()->mutable_components(1)->mutable_reward_model()->mutable_criteria())["funny"] = 1;
  const v1::ScoreResponse unknown = scorer_->Score(request_);
  EXPECT_EQ(unknown.scores(0).code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(unknown.scores(0).error(), testing::HasSubstr("helpful, honest"));
  // A model with one head has no criteria.
  request_.clear_scorer();
  v1::RewardModelComponent* plain = AddComponent("model", 1)->mutable_reward_model();
  plain->set_model(reward_);
  (*plain->mutable_criteria())["honest"] = 1;
  EXPECT_EQ(scorer_->Score(request_).scores(0).code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
}

TEST_F(ScorerTest, AFailureIsATypedStatusOfItsSamplesNeverANumber) {
  AddComponent("model", 1)->mutable_reward_model()->set_model("sha256:" + std::string(64, '0'));
  v1::ScoreResponse response = scorer_->Score(request_);
  ASSERT_EQ(response.scores_size(), 2);
  EXPECT_EQ(response.scores(0).code(), static_cast<int>(absl::StatusCode::kNotFound)) << response.scores(0).error();
  EXPECT_FALSE(response.scores(0).has_score());
  request_.clear_scorer();
  AddComponent("rule", 1)->mutable_regex()->set_pattern("(");
  response = scorer_->Score(request_);
  EXPECT_EQ(response.scores(1).code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  // The scorer is as good as before.
  request_.clear_scorer();
  AddComponent("rule", 1)->mutable_abstention();
  EXPECT_EQ(scorer_->Score(request_).scores(0).code(), 0);
}

TEST_F(ScorerTest, ASampleThatIsTooLongFailsAlone) {
  AddComponent("model", 1)->mutable_reward_model()->set_model(reward_);
  const v1::ScoreResponse alone = scorer_->Score(request_);
  const v1::Sample last = request_.samples(1);
  v1::Sample& endless = *request_.mutable_samples(1);
  for (int i = 0; i < 4096; ++i) endless.add_response_tokens(75);
  endless.mutable_id()->set_ordinal(6);
  *request_.add_samples() = last;
  const v1::ScoreResponse response = scorer_->Score(request_);
  ASSERT_EQ(response.scores_size(), 3);
  EXPECT_EQ(response.scores(1).code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(response.scores(1).error(), testing::HasSubstr("sample 0/6/0 has 4100 tokens; expected 1 to"));
  for (const int good : {0, 2}) {
    ASSERT_EQ(response.scores(good).code(), 0) << response.scores(good).error();
    EXPECT_NEAR(response.scores(good).score().total(), alone.scores(good / 2).score().total(), 1e-5);
  }
}

// A pass through a model holds a few samples, and some are in none: each gets what is its own.
TEST_F(ScorerTest, EverySampleGetsItsOwnNumbersWhateverItIsComputedWith) {
  request_.clear_samples();
  for (int i = 0; i < 7; ++i) {
    v1::Sample& sample = *request_.add_samples();
    sample.mutable_id()->set_ordinal(i);
    for (int t = 0; t <= i % 3; ++t) sample.add_prompt_tokens(100 + i + t);
    for (int t = 0; t <= i % 4; ++t) sample.add_response_tokens(70 + 3 * i + t);
    sample.set_response_text("ab");
  }
  for (int i = 0; i < 4096; ++i) request_.mutable_samples(2)->add_response_tokens(75);  // beyond every context
  AddComponent("rule", 3)->mutable_regex()->set_pattern("ab");
  AddComponent("model", 0.5)->mutable_reward_model()->set_model(reward_);
  request_.set_reference_policy(policy_);
  ScorerOptions small;
  small.batch_tokens = 8;
  Scorer in_parts(cache_.get(), small);
  const v1::ScoreResponse parts = in_parts.Score(request_);
  ASSERT_EQ(parts.scores_size(), 7);
  for (int i = 0; i < 7; ++i) {
    const v1::SampleScore& found = parts.scores(i);
    EXPECT_EQ(found.id().ordinal(), i);
    if (i == 2) {
      EXPECT_EQ(found.code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
      continue;
    }
    v1::ScoreRequest alone = request_;
    alone.clear_samples();
    *alone.add_samples() = request_.samples(i);
    const v1::ScoreResponse expected = scorer_->Score(alone);
    ASSERT_EQ(found.code(), 0) << i << ": " << found.error();
    ASSERT_EQ(expected.scores(0).code(), 0) << expected.scores(0).error();
    const v1::Score& own = expected.scores(0).score();
    EXPECT_NEAR(found.score().total(), own.total(), 1e-5) << i;
    ASSERT_EQ(found.score().reference_log_probs_size(), request_.samples(i).response_tokens_size()) << i;
    for (int t = 0; t < own.reference_log_probs_size(); ++t)
      EXPECT_NEAR(found.score().reference_log_probs(t), own.reference_log_probs(t), 1e-5) << i << ", " << t;
  }
}

// The same reward model reads one job's samples by their tokens, and another's, of another vocabulary, by their text.
TEST_F(ScorerTest, HowAModelReadsSamplesIsOfTheirPolicyNotOfTheFirstOne) {
  ASSERT_TRUE(MakeDirs(dir_.File("tokenizer")).ok() && MakeDirs(dir_.File("foreign")).ok());
  ASSERT_TRUE(artifact::TrainByteLevelBpe({dir_.File("policy") + "-text.txt"}, 264, dir_.File("tokenizer")).ok());
  const auto policy = model::LoadModel(dir_.File("policy"));
  ASSERT_TRUE(policy.ok()) << policy.status();
  ASSERT_TRUE(model::SaveModel(**policy, dir_.File("foreign"), dir_.File("tokenizer")).ok());
  const std::string foreign = artifact::ArtifactRoot(dir_.File("root")).Publish(dir_.File("foreign"))->digest;
  AddComponent("model", 1)->mutable_reward_model()->set_model(reward_);
  for (v1::Sample& sample : *request_.mutable_samples()) sample.mutable_prompt()->set_text("the cat");
  v1::ScoreRequest others = request_;
  others.set_tokenizer(foreign);
  const double own = scorer_->Score(request_).scores(0).score().total();
  const double by_text = Scorer(cache_.get(), ScorerOptions()).Score(others).scores(0).score().total();
  ASSERT_GT(std::abs(own - by_text), 1e-3) << "tokens and text are alike; the test needs others";
  EXPECT_NEAR(scorer_->Score(others).scores(0).score().total(), by_text, 1e-6);
  EXPECT_NEAR(scorer_->Score(request_).scores(0).score().total(), own, 1e-6);
}

TEST_F(ScorerTest, AWeightThatIsNotGivenIsOneAndOneOfZeroCountsNothing) {
  v1::RewardComponent* plain = request_.mutable_scorer()->add_components();
  plain->set_name("plain");
  plain->mutable_regex()->set_pattern("ab");
  AddComponent("measured", 0)->mutable_regex()->set_pattern("ab");
  const v1::ScoreResponse response = scorer_->Score(request_);
  ASSERT_EQ(response.scores(0).code(), 0) << response.scores(0).error();
  const v1::Score& score = response.scores(0).score();
  EXPECT_EQ(score.total(), 1);
  ASSERT_EQ(score.components_size(), 2);
  EXPECT_EQ(score.components(0).weight(), 1);
  EXPECT_EQ(score.components(1).value(), 1);
  EXPECT_EQ(score.components(1).weight(), 0);
}

TEST_F(ScorerTest, GoldIsMeasuredBesideTheScore) {
  AddComponent("rule", 1)->mutable_abstention();
  v1::RewardComponent* gold = request_.mutable_gold()->add_components();
  gold->set_name("gold");
  gold->set_weight(2);
  gold->mutable_length();
  const v1::ScoreResponse response = scorer_->Score(request_);
  EXPECT_EQ(response.scores(0).score().total(), 0);
  EXPECT_EQ(response.scores(0).score().gold_total(), 2);
  EXPECT_EQ(response.scores(0).score().gold(0).value(), 1);
}

TEST_F(ScorerTest, OnlyFloat32OnTheCpuSuitsADeterministicJobsModels) {
  ScorerOptions half;
  half.dtype = torch::kBFloat16;
  AddComponent("rule", 1)->mutable_regex()->set_pattern("ab");
  request_.set_deterministic(true);
  EXPECT_TRUE(CheckSuits(half, request_).ok()) << "no model is asked for";
  const auto expect_unsuited = [&] {
    const absl::Status status = CheckSuits(half, request_);
    EXPECT_TRUE(IsUnsuited(status)) << status;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("--device cpu --precision float32"));
    EXPECT_TRUE(CheckSuits({}, request_).ok());
  };
  request_.set_reference_policy(policy_);
  expect_unsuited();
  request_.clear_reference_policy();
  request_.mutable_gold()->add_components()->mutable_reward_model()->set_model(reward_);
  expect_unsuited();
  request_.clear_gold();
  AddComponent("several", 1)->mutable_ensemble()->add_models(reward_);
  expect_unsuited();
  request_.set_deterministic(false);
  EXPECT_TRUE(CheckSuits(half, request_).ok());
}

TEST_F(ScorerTest, AComponentOfANewerReleaseIsLeftToAServerThatKnowsIt) {
  AddComponent("rule", 1)->mutable_regex()->set_pattern("ab");
  v1::RewardComponent* const component = request_.mutable_scorer()->mutable_components(0);
  component->GetReflection()->MutableUnknownFields(component)->AddVarint(900, 1);
  const absl::Status status = CheckSuits({}, request_);
  EXPECT_TRUE(IsUnsuited(status)) << status;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("components[0].#900"));
}

// Answers when the test says so.
class HeldService final : public v1::ExternalRewardService::Service {
 public:
  grpc::Status ScoreTexts(grpc::ServerContext*, const v1::ScoreTextsRequest* request,
                          v1::ScoreTextsResponse* response) override {
    asked.Notify();
    answer.WaitForNotification();
    for (int i = 0; i < request->texts_size(); ++i) response->add_values(4);
    return grpc::Status::OK;
  }
  absl::Notification asked, answer;
};

TEST_F(ScorerTest, OthersAreScoredWhileAUsersServiceIsAsked) {
  HeldService service;
  const auto server = ServeOnLoopback({&service});
  v1::ScoreRequest asks = request_;
  v1::RewardComponent* component = asks.mutable_scorer()->add_components();
  component->set_name("theirs");
  component->mutable_external()->set_address(absl::StrCat("127.0.0.1:", server->port()));
  component->mutable_external()->set_plaintext(true);
  v1::ScoreResponse theirs;
  std::thread asking([&] { theirs = scorer_->Score(asks); });
  service.asked.WaitForNotification();
  AddComponent("model", 1)->mutable_reward_model()->set_model(reward_);
  EXPECT_EQ(scorer_->Score(request_).scores(0).code(), 0);
  service.answer.Notify();
  asking.join();
  EXPECT_EQ(theirs.scores(0).score().total(), 4);
}

TEST(BatcherStuckTest, ABatchThatDoesNotEndIsStuck) {
  absl::Notification hang;
  BatcherOptions options;
  options.stuck_after = absl::Milliseconds(20);
  Batcher batcher(
      [&](const v1::ScoreRequest& request) {
        hang.WaitForNotification();
        v1::ScoreResponse response;
        for (int i = 0; i < request.samples_size(); ++i) response.add_scores();
        return response;
      },
      options, [](int, absl::Duration) {});
  absl::SleepFor(absl::Milliseconds(100));
  EXPECT_EQ(batcher.StuckBecause(), "") << "it has nothing to do";
  absl::Notification answered;
  v1::ScoreRequest request;
  request.add_samples();
  batcher.Submit(std::move(request), [&](const absl::StatusOr<v1::ScoreResponse>&) { answered.Notify(); });
  while (batcher.StuckBecause().empty()) absl::SleepFor(absl::Milliseconds(5));
  hang.Notify();
  answered.WaitForNotification();
  EXPECT_EQ(batcher.StuckBecause(), "");
}

}  // namespace
}  // namespace rlhf::reward
