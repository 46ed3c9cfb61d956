// PPO on a tiny model, one rank: rewards, ratios, corrections, the KL loss, checkpoints and refusals.
#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/log_probs.h"
#include "tests/learner/trainer_fixture.h"

namespace rlhf::learner {
namespace {

using testing::HasSubstr;

using PpoTrainerTest = TrainerTest;

TEST_F(PpoTrainerTest, PpoRaisesItsReward) {
  v1::JobSpec job = PpoJob(256);
  job.mutable_ppo()->mutable_policy_optimizer()->set_learning_rate(1e-2);
  auto trainer = Make(job);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  double first = 0, last = 0;
  for (int64_t step = 1; step <= 12; ++step) {
    const auto result = (*trainer)->RunStep(step, Rollouts((*trainer)->model(), step, 256, 100));
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(result->trained) << result->refusal;
    EXPECT_LE(result->metrics.at("first_minibatch_ratio_error"), 1e-4);
    EXPECT_LE(std::abs(result->metrics.at("mismatch_kl")), 1e-6);
    EXPECT_GE(result->metrics.at("clip_ratio"), 0);
    EXPECT_EQ(result->metrics.at("learning_rate"), 1e-2);
    EXPECT_EQ(result->metrics.at("learning_rate/critic"), 3e-3);
    last = result->metrics.at("reward/mean");
    if (step == 1) first = last;
  }
  EXPECT_GT(last, first + 0.05);
}

// Samples of an int8 copy of the policy: the mismatch is measured, and the loss is weighted by what it is.
TEST_F(PpoTrainerTest, RolloutsByInt8WeightsAreCorrectedByTheirOwnLogProbabilities) {
  auto trainer = Make(PpoJob(64)), pretending = Make(PpoJob(64));
  ASSERT_TRUE(trainer.ok() && pretending.ok()) << trainer.status();
  model::LoadOptions options;
  options.int8 = true;
  const auto sampler = model::LoadModel(dir_.File("model"), options);
  ASSERT_TRUE(sampler.ok()) << sampler.status();
  (*sampler)->CopyFrom((*trainer)->model());
  std::vector<v1::Sample> batch = Rollouts(**sampler, 1, 64, 100);
  // What the learner says of the same tokens.
  std::vector<v1::Sample> trusted = batch;
  double kl = 0, weight = 0, tokens = 0;
  {
    const torch::NoGradGuard no_grad;
    for (v1::Sample& sample : trusted) {
      std::vector<int32_t> ids(sample.prompt_tokens().begin(), sample.prompt_tokens().end());
      ids.insert(ids.end(), sample.response_tokens().begin(), sample.response_tokens().end());
      const model::PackedBatch packed = model::PackedBatch::FromSequences({ids});
      const model::ResponseIndex index = model::IndexResponses(packed, {sample.prompt_tokens_size()});
      const model::Transformer& policy = (*trainer)->model();
      const torch::Tensor old =
          model::ChunkedLogProbs(policy, policy.Hidden(packed).index_select(0, index.rows), index.targets, 1.0)
              .log_probs;
      for (int t = 0; t < sample.response_tokens_size(); ++t) {
        const double log_r = old[t].item<double>() - sample.behaviour_log_probs(t);
        kl += std::exp(log_r) - 1 - log_r;
        weight += std::exp(log_r);
        tokens += 1;
        sample.set_behaviour_log_probs(t, old[t].item<float>());
      }
    }
  }
  const auto result = (*trainer)->RunStep(1, batch), other = (*pretending)->RunStep(1, trusted);
  ASSERT_TRUE(result.ok() && other.ok()) << result.status();
  ASSERT_TRUE(result->trained) << result->refusal;
  EXPECT_GT(result->metrics.at("mismatch_kl"), 1e-10);
  EXPECT_LT(result->metrics.at("mismatch_kl"), 1e-3);
  EXPECT_NEAR(result->metrics.at("mismatch_kl"), kl / tokens, 0.1 * kl / tokens);
  EXPECT_NEAR(result->metrics.at("importance_weight/mean"), weight / tokens, 1e-5);
  EXPECT_LE(result->metrics.at("first_minibatch_ratio_error"), 1e-4);
  EXPECT_LT(other->metrics.at("mismatch_kl"), 1e-11);
  EXPECT_NE(model::WeightsDigest((*trainer)->model()), model::WeightsDigest((*pretending)->model()))
      << "the weights of the correction are in the gradient";
  // Truncated: a sampler that is far off weighs no more than max_importance_weight.
  for (v1::Sample& sample : batch) {
    sample.mutable_id()->set_step(2);
    for (float& log_prob : *sample.mutable_behaviour_log_probs()) log_prob -= 20;
  }
  const auto far = (*trainer)->RunStep(2, batch);
  ASSERT_TRUE(far.ok()) << far.status();
  EXPECT_EQ(far->metrics.at("importance_weight/mean"), 2);
}

TEST_F(PpoTrainerTest, MicroBatchesDoNotChangeAPpoStep) {
  for (v1::JobSpec job : {PpoJob(16), GroupJob(v1::KL_LOSS_K2), GroupJob(v1::KL_LOSS_K3)}) {
    auto whole = Make(job);
    job.mutable_ppo()->set_micro_batch_tokens(11);  // two sequences at a time
    auto parts = Make(job);
    ASSERT_TRUE(whole.ok() && parts.ok());
    const auto batch = GroupRollouts((*whole)->model(), 1);
    const auto one = (*whole)->RunStep(1, batch), other = (*parts)->RunStep(1, batch);
    ASSERT_TRUE(one.ok() && other.ok()) << one.status() << other.status();
    for (const auto& [name, value] : one->metrics) EXPECT_NEAR(other->metrics.at(name), value, 1e-4) << name;
    for (size_t i = 0; i < (*whole)->model().named_parameters().size(); ++i) {
      EXPECT_TRUE(torch::allclose((*whole)->model().named_parameters()[i].second,
                                  (*parts)->model().named_parameters()[i].second, 1e-3, 1e-5))
          << (*whole)->model().named_parameters()[i].first;
    }
  }
}

// With scores that are all alike nothing but the distance to the reference is left.
TEST_F(PpoTrainerTest, KlInTheLossIsNoPartOfAdvantages) {
  for (const v1::KlForm form : {v1::KL_LOSS_K2, v1::KL_LOSS_K3, v1::KL_REWARD}) {
    v1::JobSpec job = GroupJob(form);
    job.mutable_ppo()->mutable_kl()->set_adaptive(true);
    job.mutable_ppo()->mutable_kl()->set_target(1e-3);
    job.mutable_ppo()->mutable_kl()->set_horizon(160);
    auto trainer = Make(job);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    auto batch = GroupRollouts((*trainer)->model(), 1);
    for (v1::Sample& sample : batch) sample.mutable_score()->set_total(0.5);
    const torch::Tensor reference = References(batch), log_probs = PlainLogProbs((*trainer)->model(), batch);
    const torch::Tensor d = reference - log_probs;
    const torch::Tensor plain = (form == v1::KL_LOSS_K2 ? 0.5 * d * d : torch::exp(d) - d - 1).mean();
    const double kl = -d.sum().item<double>() / 16, norm = NormOfGradient(0.3 * plain, (*trainer)->model());
    const auto result = (*trainer)->RunStep(1, batch);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(result->trained) << result->refusal;
    EXPECT_NEAR(result->metrics.at("kl"), kl, 1e-4) << "it means the same in every form";
    EXPECT_EQ(result->metrics.at("kl_coefficient"), 0.3);
    if (form == v1::KL_REWARD) {
      EXPECT_EQ(result->metrics.count("loss/kl"), 0u);
      EXPECT_GT(result->metrics.at("grad_norm/policy"), 2 * norm)
          << "divided by its own deviation it has full strength";
    } else {
      EXPECT_EQ(result->metrics.at("loss/policy"), 0);
      EXPECT_NEAR(result->metrics.at("loss/kl"), plain.item<double>(), 1e-5);
      EXPECT_NEAR(result->metrics.at("grad_norm/policy"), norm, 1e-4 * norm);
    }
    // The controller goes by what was sampled, in every form.
    const auto next = (*trainer)->RunStep(2, GroupRollouts((*trainer)->model(), 2));
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_NEAR(next->metrics.at("kl_coefficient"), 0.3 * (1 + (kl > 1e-3 ? 0.2 : -0.2) * 16 / 160), 1e-9);
  }
}

TEST_F(PpoTrainerTest, KlInTheLossInBfloat16AndToTheByte) {
  v1::JobSpec exact = GroupJob(v1::KL_LOSS_K3), half = exact;
  exact.set_deterministic(true);
  exact.mutable_ppo()->set_epochs(3);
  auto trainer = Make(exact), again = Make(exact);
  ASSERT_TRUE(trainer.ok() && again.ok()) << trainer.status();
  const auto batch = GroupRollouts((*trainer)->model(), 1);
  const auto result = (*trainer)->RunStep(1, batch), same = (*again)->RunStep(1, batch);
  ASSERT_TRUE(result.ok() && same.ok()) << result.status() << same.status();
  EXPECT_EQ(result->metrics, same->metrics);
  EXPECT_EQ(*(*trainer)->Digest(), *(*again)->Digest());
  half.mutable_ppo()->set_precision(v1::BFLOAT16);
  half.mutable_ppo()->set_max_first_minibatch_ratio_error(2e-2);
  auto rounded = Make(half), plain = Make(GroupJob(v1::KL_LOSS_K3));
  ASSERT_TRUE(rounded.ok() && plain.ok()) << rounded.status();
  const auto in_half = (*rounded)->RunStep(1, batch), in_float = (*plain)->RunStep(1, batch);
  ASSERT_TRUE(in_half.ok() && in_float.ok()) << in_half.status() << in_float.status();
  EXPECT_NEAR(in_half->metrics.at("loss/kl") / in_float->metrics.at("loss/kl"), 1, 0.1);
}

TEST_F(PpoTrainerTest, KlInTheLossOfALoraPolicyIsAgainstItsOwnBase) {
  v1::JobSpec job = GroupJob(v1::KL_LOSS_K3);
  job.mutable_ppo()->mutable_lora()->set_rank(4);
  job.mutable_ppo()->mutable_lora()->set_alpha(8);
  auto trainer = Make(job);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  double kl_loss = 0;
  for (int64_t step = 1; step <= 3; ++step) {
    auto batch = GroupRollouts((*trainer)->model(), step);
    for (v1::Sample& sample : batch) sample.mutable_score()->clear_reference_log_probs();
    const auto result = (*trainer)->RunStep(step, batch);
    ASSERT_TRUE(result.ok()) << result.status();
    kl_loss = result->metrics.at("loss/kl");
    if (step == 1) {
      EXPECT_NEAR(kl_loss, 0, 1e-9);  // fresh adapters are the base
    }
  }
  EXPECT_GT(kl_loss, 1e-6);
}

TEST_F(PpoTrainerTest, APpoCheckpointHoldsEverything) {
  v1::JobSpec job = PpoJob(16);
  // A coefficient and a place in the data that move with every step.
  job.mutable_ppo()->mutable_kl()->set_adaptive(true);
  job.mutable_ppo()->mutable_kl()->set_target(1e-3);
  job.mutable_ppo()->mutable_kl()->set_horizon(160);
  job.mutable_ppo()->mutable_ptx()->set_data("data");
  job.mutable_ppo()->mutable_ptx()->set_coefficient(0.5);
  job.mutable_ppo()->mutable_ptx()->set_batch_size(1);
  auto whole = Make(job), resumed = Make(job);
  ASSERT_TRUE(whole.ok() && resumed.ok()) << whole.status();
  const std::string checkpoint = dir_.File("checkpoint");
  ASSERT_TRUE(MakeDirs(checkpoint).ok());
  ASSERT_TRUE((*whole)->RunStep(1, Rollouts((*whole)->model(), 1, 16, 100)).ok());
  ASSERT_TRUE((*whole)->SaveCheckpoint(checkpoint).ok());
  const auto batch = Rollouts((*whole)->model(), 2, 16, 100);
  const auto result = (*whole)->RunStep(2, batch);
  ASSERT_TRUE((*resumed)->LoadCheckpoint(checkpoint).ok());
  const auto again = (*resumed)->RunStep(2, batch);
  ASSERT_TRUE(result.ok() && again.ok());
  EXPECT_EQ(*(*whole)->Digest(), *(*resumed)->Digest());
  EXPECT_EQ(result->metrics, again->metrics);
  EXPECT_NE(result->metrics.at("kl_coefficient"), job.ppo().kl().coefficient());
  // A step whose commit was not taken.
  (*resumed)->RevertStep();
  EXPECT_NE(*(*whole)->Digest(), *(*resumed)->Digest());
  const auto once_more = (*resumed)->RunStep(2, batch);
  ASSERT_TRUE(once_more.ok()) << once_more.status();
  EXPECT_EQ(result->metrics, once_more->metrics);
  EXPECT_EQ(*(*whole)->Digest(), *(*resumed)->Digest());
}

TEST_F(PpoTrainerTest, ANonFiniteBatchIsRefusedAndLeavesNothing) {
  auto trainer = Make(PpoJob(8));
  ASSERT_TRUE(trainer.ok());
  const std::string before = model::WeightsDigest((*trainer)->model());
  auto batch = Rollouts((*trainer)->model(), 1, 8, 100);
  batch[3].mutable_score()->set_total(std::nan(""));
  const auto result = (*trainer)->RunStep(1, batch);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->trained);
  EXPECT_THAT(result->refusal, HasSubstr("not finite"));
  EXPECT_EQ(model::WeightsDigest((*trainer)->model()), before);
  // Also when an earlier update of the step was made: here of rates that leave the critic no finite value.
  batch[3].mutable_score()->set_total(0);
  v1::JobSpec wild = PpoJob(8);
  wild.mutable_ppo()->mutable_critic_optimizer()->set_learning_rate(1e15);
  auto diverging = Make(wild);
  ASSERT_TRUE(diverging.ok()) << diverging.status();
  const absl::StatusOr<std::string> start = (*diverging)->Digest();
  ASSERT_TRUE(start.ok()) << start.status();
  const auto diverged = (*diverging)->RunStep(1, batch);
  ASSERT_TRUE(diverged.ok()) << diverged.status();
  EXPECT_FALSE(diverged->trained);
  EXPECT_THAT(diverged->refusal, HasSubstr("critic loss"));
  EXPECT_EQ(*(*diverging)->Digest(), *start);
  batch[2].mutable_score()->clear_reference_log_probs();
  const auto missing = (*trainer)->RunStep(1, batch);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("sample 1/2/0"));
}

TEST_F(PpoTrainerTest, ADeterministicPpoStepHasARatioOfExactlyOne) {
  v1::JobSpec job = PpoJob(16, 30);
  job.set_deterministic(true);
  auto trainer = Make(job), again = Make(job);
  ASSERT_TRUE(trainer.ok() && again.ok()) << trainer.status();
  auto batch = Rollouts((*trainer)->model(), 1, 16, 100);
  const auto result = (*trainer)->RunStep(1, batch);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->metrics.at("first_minibatch_ratio_error"), 0);
  EXPECT_EQ(result->metrics.at("mismatch_kl"), 0);
  EXPECT_EQ(result->metrics.at("importance_weight/mean"), 1);
  ASSERT_TRUE((*again)->RunStep(1, batch).ok());
  EXPECT_EQ(model::WeightsDigest((*trainer)->model()), model::WeightsDigest((*again)->model()));
  // Samples of other numerics are noticed.
  batch = Rollouts((*trainer)->model(), 2, 16, 100);
  batch[5].set_behaviour_log_probs(0, batch[5].behaviour_log_probs(0) + 1e-6F);
  const auto other = (*trainer)->RunStep(2, batch);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition) << other.status();
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("instruction set"));
}

TEST_F(PpoTrainerTest, WhatTopPKeepsIsAMetric) {
  auto trainer = Make(PpoJob(4));
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  auto batch = Rollouts((*trainer)->model(), 1, 4, 100);
  for (size_t i = 0; i < batch.size(); ++i) {
    for (int t = 0; t < 2; ++t) batch[i].add_log_kept_mass(std::log(i == 0 ? 0.4F : 0.8F));
  }
  auto result = (*trainer)->RunStep(1, batch);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_NEAR(result->metrics.at("kept_mass"), 0.7, 1e-6);
  result = (*trainer)->RunStep(2, Rollouts((*trainer)->model(), 2, 4, 100));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->metrics.count("kept_mass"), 0u) << "nothing was cut off";
}

}  // namespace
}  // namespace rlhf::learner
