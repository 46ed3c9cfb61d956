// What a job says reaches its steps: bounds that end or refuse, and how far the learning rate has to go.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "learner/optimizer.h"
#include "tests/learner/given_samples.h"

namespace rlhf::learner {
namespace {

using testing::HasSubstr;

class SettingsTest : public TinyJobTest {
 protected:
  // The rates of a job's steps; it has no more.
  std::vector<double> Rates(const v1::JobSpec& job, int64_t steps, const std::vector<v1::Sample>& batch = {}) {
    std::vector<double> rates;
    auto trainer = Make(job);
    EXPECT_TRUE(trainer.ok()) << trainer.status();
    if (!trainer.ok()) return rates;
    EXPECT_EQ((*trainer)->total_steps(), steps);
    for (int64_t step = 1; step <= steps; ++step) {
      const auto result = (*trainer)->RunStep(step, batch);
      EXPECT_TRUE(result.ok() && result->trained) << result.status();
      if (!result.ok()) return rates;
      rates.push_back(result->metrics.at("learning_rate"));
    }
    return rates;
  }
  static void Decay(v1::OptimizerSpec* spec) {
    spec->set_schedule(v1::LINEAR);
    spec->set_final_learning_rate_ratio(0.1);
  }
};

// A rank whose old log-probabilities are not those of its first minibatch.
class OffBy final : public Collective {
 public:
  explicit OffBy(float off) : off_(off) {}
  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  absl::Status AllReduceSum(torch::Tensor tensor) override {
    if (tensor.dim() == 2) tensor[0].add_(off_);  // what is known before the updates; metrics are of one dimension
    return absl::OkStatus();
  }
  absl::Status Broadcast(torch::Tensor tensor, int root) override { return alone_->Broadcast(tensor, root); }
  absl::StatusOr<std::unique_ptr<Pending>> StartAllReduceSum(torch::Tensor tensor) override {
    return alone_->StartAllReduceSum(tensor);
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartReduceScatterSum(torch::Tensor tensor) override {
    return alone_->StartReduceScatterSum(tensor);
  }
  absl::Status AllGather(torch::Tensor tensor) override { return alone_->AllGather(tensor); }
  absl::StatusOr<bool> Vote(bool ok) override { return ok; }
  void Abort() override {}
  bool aborted() const override { return false; }

 private:
  const float off_;
  const std::unique_ptr<Collective> alone_ = MakeSingleRank();
};

TEST_F(SettingsTest, AFirstMinibatchThatIsNotTheOldPolicysFailsAndLeavesNothing) {
  v1::JobSpec job = PpoJob(4);
  const std::vector<v1::Sample> samples = Samples({1, 2, 3, 4});
  OffBy off(1e-3F);
  auto trainer = Make(job);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  const absl::StatusOr<std::string> before = (*trainer)->Digest();
  ASSERT_TRUE(before.ok()) << before.status();
  (*trainer)->SetCollective(&off);
  const auto failed = (*trainer)->RunStep(1, samples);
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kFailedPrecondition) << failed.status();
  EXPECT_THAT(std::string(failed.status().message()), HasSubstr("self-check"));
  EXPECT_THAT(std::string(failed.status().message()), HasSubstr("max_first_minibatch_ratio_error"));
  EXPECT_EQ(*(*trainer)->Digest(), *before);
  // With sound sums the same trainer goes on.
  (*trainer)->SetCollective(alone_.get());
  const auto sound = (*trainer)->RunStep(1, samples);
  ASSERT_TRUE(sound.ok()) << sound.status();
  EXPECT_TRUE(sound->trained);
  // The bound is the job's.
  job.mutable_ppo()->set_max_first_minibatch_ratio_error(1e-2);
  auto tolerant = Make(job);
  ASSERT_TRUE(tolerant.ok()) << tolerant.status();
  (*tolerant)->SetCollective(&off);
  const auto result = (*tolerant)->RunStep(1, samples);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_NEAR(result->metrics.at("first_minibatch_ratio_error"), 1e-3, 1e-5);
}

TEST_F(SettingsTest, AJobStopsWhereItsPolicyIsFurtherFromTheReferenceThanEarlyStopSays) {
  std::vector<v1::Sample> samples = Samples({1, 2, 3, 4});
  for (v1::Sample& sample : samples) {
    for (float& log_prob : *sample.mutable_score()->mutable_reference_log_probs()) log_prob -= 1;
  }
  for (const double max_kl : {0.0, 2.4, 2.6}) {  // the mean is 2.5 tokens, a nat each
    v1::JobSpec job = PpoJob(4);
    job.mutable_ppo()->mutable_early_stop()->set_max_kl(max_kl);
    auto trainer = Make(job);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    const auto result = (*trainer)->RunStep(1, samples);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->trained) << "the step counts";
    EXPECT_NEAR(result->metrics.at("kl"), 2.5, 1e-4);
    EXPECT_EQ(result->stop, max_kl == 2.4) << max_kl;
    EXPECT_EQ(result->stop_reason.empty(), !result->stop);
    if (result->stop) {
      EXPECT_THAT(result->stop_reason, HasSubstr("early_stop.max_kl 2.4"));
    }
  }
}

TEST_F(SettingsTest, WhileTheCriticWarmsUpThePolicyAndWhatFollowsItStay) {
  const std::vector<v1::Sample> samples = Samples({1, 2, 3, 4});
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), "{\"prompt\":\"the cat\",\"response\":\" sat\"}\n").ok());
  v1::JobSpec job = PpoJob(4);  // four updates a step
  job.mutable_ppo()->set_steps(4);
  job.mutable_ppo()->set_critic_warmup_steps(2);
  job.mutable_ppo()->mutable_ptx()->set_data("data");
  job.mutable_ppo()->mutable_ptx()->set_coefficient(0.5);
  job.mutable_ppo()->mutable_ptx()->set_batch_size(1);
  job.mutable_ppo()->mutable_kl()->set_adaptive(true);
  job.mutable_ppo()->mutable_kl()->set_target(6);
  job.mutable_ppo()->mutable_kl()->set_horizon(100);
  Decay(job.mutable_ppo()->mutable_policy_optimizer());
  auto trainer = Make(job);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  const std::string weights = model::WeightsDigest((*trainer)->model());
  std::vector<double> value_losses;
  for (int64_t step = 1; step <= 4; ++step) {
    SCOPED_TRACE(step);
    const std::string digest = *(*trainer)->Digest();
    const auto result = (*trainer)->RunStep(step, samples);
    ASSERT_TRUE(result.ok() && result->trained) << result.status();
    const bool warms_up = step <= 2;
    EXPECT_EQ(model::WeightsDigest((*trainer)->model()) == weights, warms_up);
    EXPECT_NE(*(*trainer)->Digest(), digest) << "the critic trains";
    value_losses.push_back(result->metrics.at("loss/value"));
    for (const char* of_policy : {"loss/policy", "loss/ptx", "clip_ratio", "approx_kl", "grad_norm/policy",
                                  "first_minibatch_ratio_error", "learning_rate"})
      EXPECT_EQ(result->metrics.contains(of_policy), !warms_up) << of_policy;
    if (step <= 3) {
      EXPECT_EQ(result->metrics.at("kl_coefficient"), 0.02) << "as it was before the policy's first step";
    }
    if (warms_up) continue;
    EXPECT_DOUBLE_EQ(result->metrics.at("learning_rate"),
                     LearningRateAt(job.ppo().policy_optimizer(), 4 * (step - 3), 8))
        << "its schedule begins with its first update, and ends with its last";
  }
  EXPECT_LT(value_losses[1], value_losses[0]);

  // One that a checkpoint ended in the middle of warming up goes on to the same bytes.
  auto whole = Make(job), resumed = Make(job);
  ASSERT_TRUE(whole.ok() && resumed.ok());
  ASSERT_TRUE((*whole)->RunStep(1, samples).ok());
  ASSERT_TRUE(MakeDirs(dir_.File("checkpoint")).ok());
  ASSERT_TRUE((*whole)->SaveCheckpoint(dir_.File("checkpoint")).ok());
  ASSERT_TRUE((*resumed)->LoadCheckpoint(dir_.File("checkpoint")).ok());
  for (int64_t step = 2; step <= 4; ++step) {
    ASSERT_TRUE((*whole)->RunStep(step, samples).ok());
    ASSERT_TRUE((*resumed)->RunStep(step, samples).ok());
    EXPECT_EQ(*(*resumed)->Digest(), *(*whole)->Digest()) << step;
  }
}

TEST_F(SettingsTest, TheLearningRateEndsWithTheJobsLastUpdate) {
  const std::vector<v1::Sample> samples = Samples({1, 2, 3, 1, 2, 3, 1, 2});
  v1::JobSpec ppo = PpoJob(4);
  ppo.mutable_ppo()->set_samples_per_prompt(2);
  ppo.mutable_ppo()->set_minibatch_size(3);  // 3, 3 and 2 samples
  ppo.mutable_ppo()->set_epochs(2);
  ppo.mutable_ppo()->set_steps(3);
  Decay(ppo.mutable_ppo()->mutable_policy_optimizer());
  const std::vector<double> of_ppo = Rates(ppo, 3, samples);
  ASSERT_EQ(of_ppo.size(), 3u);
  for (int64_t step = 0; step < 3; ++step) {
    EXPECT_DOUBLE_EQ(of_ppo[static_cast<size_t>(step)], LearningRateAt(ppo.ppo().policy_optimizer(), 6 * step, 18));
  }

  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), "{\"prompt\":\"the cat\",\"response\":\" sat\"}\n").ok());
  v1::JobSpec sft = SftJob(4);
  Decay(sft.mutable_sft()->mutable_optimizer());
  const std::vector<double> of_sft = Rates(sft, 4);
  ASSERT_EQ(of_sft.size(), 4u);
  for (int64_t step = 0; step < 4; ++step)
    EXPECT_DOUBLE_EQ(of_sft[static_cast<size_t>(step)], LearningRateAt(sft.sft().optimizer(), step, 4));
  EXPECT_NEAR(of_sft.back(), 0.1 * of_sft.front(), 1e-12);

  std::string comparisons;
  for (int i = 0; i < 10; ++i)
    absl::StrAppend(&comparisons, "{\"prompt\":\"item ", i, "\",\"chosen\":\" good\",\"rejected\":\" bad\"}\n");
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), comparisons).ok());
  v1::JobSpec reward;
  v1::RewardModelSpec* spec = reward.mutable_reward_model();
  spec->set_model("model");
  spec->set_data("data");
  spec->set_epochs(3);
  spec->set_batch_size(4);
  spec->set_micro_batch_tokens(8192);
  Complete(spec->mutable_optimizer(), 1e-3);
  Decay(spec->mutable_optimizer());
  const std::vector<double> of_reward = Rates(reward, 8);  // 30 pairs
  ASSERT_EQ(of_reward.size(), 8u);
  for (int64_t step = 0; step < 8; ++step)
    EXPECT_DOUBLE_EQ(of_reward[static_cast<size_t>(step)], LearningRateAt(spec->optimizer(), step, 8));
  EXPECT_NEAR(of_reward.back(), 1e-4, 1e-12);
}

}  // namespace
}  // namespace rlhf::learner
