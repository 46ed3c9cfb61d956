// The three trainers on a tiny model, one rank.
#include "learner/trainer.h"

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "learner/reward_model_trainer.h"
#include "model/log_probs.h"
#include "model/lora.h"
#include "model/sampler.h"
#include "tests/learner/specs.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tensor_memory.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::learner {
namespace {

using testing::HasSubstr;

class TrainerTest : public testing::Test {
 protected:
  void SetUp() override {
    MakeTinyModel(dir_.File("model"), 1);
    ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"),
                                 "{\"prompt\":\"the cat\",\"response\":\" sat on the mat\"}\n{\"prompt\":\"the "
                                 "dog\",\"response\":\" sat on the log\"}\n"
                                 "{\"prompt\":\"red\",\"response\":\" blue green\"}\n")
                    .ok());
    alone_ = MakeSingleRank();
  }
  static v1::JobSpec RewardModelJob() {
    v1::JobSpec job;
    v1::RewardModelSpec* spec = job.mutable_reward_model();
    spec->set_model("model");
    spec->set_data("data");
    spec->set_held_out_fraction(0.25);
    spec->set_epochs(4);
    spec->set_batch_size(8);
    spec->set_centering(0.001);
    spec->set_micro_batch_tokens(8192);
    Complete(spec->mutable_optimizer(), 3e-3);
    return job;
  }
  absl::StatusOr<std::unique_ptr<Trainer>> Make(const v1::JobSpec& spec) {
    TrainerInputs inputs;
    inputs.spec = spec;
    inputs.local = {{"model", dir_.File("model")}, {"data", dir_.File("data.jsonl")}};
    auto trainer = Trainer::Create(inputs);
    if (trainer.ok()) (*trainer)->SetCollective(alone_.get());
    return trainer;
  }

  // Samples drawn from the trainer's own policy: 2 tokens after a prompt; the score is 1 when the first is the wanted
  // one.
  std::vector<v1::Sample> Rollouts(const model::Transformer& policy, int64_t step, int n, int32_t wanted) {
    const torch::NoGradGuard no_grad;
    std::vector<v1::Sample> samples;
    const std::vector<int32_t> prompt{1, 70, 80};
    for (int i = 0; i < n; ++i) {
      v1::Sample& sample = samples.emplace_back();
      sample.mutable_id()->set_step(step);
      sample.mutable_id()->set_ordinal(i);
      std::vector<int32_t> tokens = prompt;
      for (uint32_t t = 0; t < 2; ++t) {
        const torch::Tensor hidden = policy.Hidden(model::PackedBatch::FromSequences({tokens}));
        model::NoiseKey key;
        key.seed = 5;
        key.step = static_cast<uint32_t>(step);
        key.ordinal = static_cast<uint32_t>(i);
        const auto drawn = model::Sample(policy.Logits(hidden.narrow(0, hidden.size(0) - 1, 1)), {{}}, {key}, {t})[0];
        tokens.push_back(drawn.id);
        sample.add_response_tokens(drawn.id);
        sample.add_behaviour_log_probs(drawn.log_prob);
        sample.mutable_score()->add_reference_log_probs(drawn.log_prob);
      }
      sample.mutable_prompt_tokens()->Add(prompt.begin(), prompt.end());
      sample.set_finish_reason(v1::END_OF_TEXT);
      sample.mutable_score()->set_total(sample.response_tokens(0) == wanted ? 1
                                        : sample.response_tokens(0) < 140   ? 0.2
                                                                            : 0);
    }
    return samples;
  }

  // Four prompts with four samples each, whose references are near the samples' log-probabilities and not on them.
  static v1::JobSpec GroupJob(v1::KlForm form) {
    v1::JobSpec job = PpoJob(4);
    v1::PpoSpec* spec = job.mutable_ppo();
    spec->set_samples_per_prompt(4);
    spec->set_minibatch_size(0);
    spec->set_epochs(1);
    spec->set_advantage(v1::GRPO);
    spec->set_whiten_advantages(false);
    spec->mutable_kl()->set_form(form);
    spec->mutable_kl()->set_coefficient(0.3);
    return job;
  }
  std::vector<v1::Sample> GroupRollouts(const model::Transformer& policy, int64_t step) {
    std::vector<v1::Sample> batch = Rollouts(policy, step, 16, 100);
    for (size_t i = 0; i < batch.size(); ++i) {
      for (int t = 0; t < 2; ++t) {
        float* const reference = batch[i].mutable_score()->mutable_reference_log_probs()->Mutable(t);
        *reference += 0.1F * static_cast<float>(static_cast<int>(i * 7 + static_cast<size_t>(t) * 3) % 5 - 2);
      }
    }
    return batch;
  }
  // Of the samples' response tokens, by the plain formula.
  static torch::Tensor PlainLogProbs(const model::Transformer& policy, const std::vector<v1::Sample>& samples) {
    std::vector<torch::Tensor> out;
    for (const v1::Sample& sample : samples) {
      std::vector<int32_t> ids(sample.prompt_tokens().begin(), sample.prompt_tokens().end());
      ids.insert(ids.end(), sample.response_tokens().begin(), sample.response_tokens().end());
      const torch::Tensor all =
          torch::log_softmax(policy.Logits(policy.Hidden(model::PackedBatch::FromSequences({ids}))), -1);
      for (int t = 0; t < sample.response_tokens_size(); ++t)
        out.push_back(all[sample.prompt_tokens_size() + t - 1][sample.response_tokens(t)]);
    }
    return torch::stack(out);
  }
  static torch::Tensor References(const std::vector<v1::Sample>& samples) {
    std::vector<float> out;
    for (const v1::Sample& sample : samples) {
      out.insert(out.end(), sample.score().reference_log_probs().begin(), sample.score().reference_log_probs().end());
    }
    return torch::tensor(out);
  }
  static double NormOfGradient(const torch::Tensor& loss, const model::Transformer& policy) {
    std::vector<torch::Tensor> parameters;
    for (const auto& [name, parameter] : policy.trained_parameters()) parameters.push_back(parameter);
    double square = 0;
    for (const torch::Tensor& gradient : torch::autograd::grad({loss}, parameters, {}, {}, false, true)) {
      if (gradient.defined()) square += gradient.square().sum().item<double>();
    }
    return std::sqrt(square);
  }

  ScratchDir dir_;
  std::unique_ptr<Collective> alone_;
};

TEST_F(TrainerTest, SftLearnsItsData) {
  auto trainer = Make(SftJob(30));
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  double first = 0, last = 0;
  for (int64_t step = 1; step <= 30; ++step) {
    const auto result = (*trainer)->RunStep(step, {});
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(result->trained);
    last = result->metrics.at("loss");
    if (step == 1) first = last;
  }
  EXPECT_NEAR(first, std::log(280.0), 0.5);
  EXPECT_LT(last, first / 3);
  const std::string out = dir_.File("out");
  ASSERT_TRUE(MakeDirs(out).ok());
  ASSERT_TRUE((*trainer)->Finish(out).ok());
  const auto loaded = model::LoadModel(out);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(model::WeightsDigest(**loaded), model::WeightsDigest((*trainer)->model()));
}

TEST_F(TrainerTest, ACheckpointGoesOnToTheSameBytes) {
  auto whole = Make(SftJob(6)), resumed = Make(SftJob(6));
  ASSERT_TRUE(whole.ok() && resumed.ok());
  const std::string checkpoint = dir_.File("checkpoint");
  ASSERT_TRUE(MakeDirs(checkpoint).ok());
  for (int64_t step = 1; step <= 6; ++step) {
    ASSERT_TRUE((*whole)->RunStep(step, {}).ok());
    if (step == 3) ASSERT_TRUE((*whole)->SaveCheckpoint(checkpoint).ok());
  }
  ASSERT_TRUE((*resumed)->LoadCheckpoint(checkpoint).ok());
  for (int64_t step = 4; step <= 6; ++step) ASSERT_TRUE((*resumed)->RunStep(step, {}).ok());
  EXPECT_EQ(model::WeightsDigest((*whole)->model()), model::WeightsDigest((*resumed)->model()));
  // A step whose commit was not taken.
  ASSERT_TRUE((*resumed)->RunStep(7, {}).ok());
  EXPECT_NE(model::WeightsDigest((*whole)->model()), model::WeightsDigest((*resumed)->model()));
  (*resumed)->RevertStep();
  EXPECT_EQ(model::WeightsDigest((*whole)->model()), model::WeightsDigest((*resumed)->model()));
}

TEST_F(TrainerTest, PpoRaisesItsReward) {
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
    last = result->metrics.at("reward/mean");
    if (step == 1) first = last;
  }
  EXPECT_GT(last, first + 0.05);
}

// Samples of an int8 copy of the policy: the mismatch is measured, and the loss is weighted by what it is.
TEST_F(TrainerTest, RolloutsByInt8WeightsAreCorrectedByTheirOwnLogProbabilities) {
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

TEST_F(TrainerTest, MicroBatchesDoNotChangeAPpoStep) {
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
TEST_F(TrainerTest, KlInTheLossIsNoPartOfAdvantages) {
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

TEST_F(TrainerTest, KlInTheLossInBfloat16AndToTheByte) {
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

TEST_F(TrainerTest, KlInTheLossOfALoraPolicyIsAgainstItsOwnBase) {
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

TEST_F(TrainerTest, APpoCheckpointHoldsEverything) {
  auto whole = Make(PpoJob(16)), resumed = Make(PpoJob(16));
  ASSERT_TRUE(whole.ok() && resumed.ok());
  const std::string checkpoint = dir_.File("checkpoint");
  ASSERT_TRUE(MakeDirs(checkpoint).ok());
  ASSERT_TRUE((*whole)->RunStep(1, Rollouts((*whole)->model(), 1, 16, 100)).ok());
  ASSERT_TRUE((*whole)->SaveCheckpoint(checkpoint).ok());
  const auto batch = Rollouts((*whole)->model(), 2, 16, 100);
  const auto result = (*whole)->RunStep(2, batch);
  ASSERT_TRUE((*resumed)->LoadCheckpoint(checkpoint).ok());
  const auto again = (*resumed)->RunStep(2, batch);
  ASSERT_TRUE(result.ok() && again.ok());
  EXPECT_EQ(model::WeightsDigest((*whole)->model()), model::WeightsDigest((*resumed)->model()));
  EXPECT_EQ(result->metrics, again->metrics);
}

TEST_F(TrainerTest, ANonFiniteBatchIsRefusedAndLeavesNothing) {
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
  batch[3].mutable_score()->set_total(0);
  batch[2].mutable_score()->clear_reference_log_probs();
  const auto missing = (*trainer)->RunStep(1, batch);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("sample 1/2/0"));
}

TEST_F(TrainerTest, ADeterministicPpoStepHasARatioOfExactlyOne) {
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

TEST_F(TrainerTest, GradientCheckpointingEndsInTheSameBytes) {
  v1::JobSpec sft = SftJob(2, 16), sft_lora = sft, ppo = PpoJob(8, 30), ppo_lora = ppo;
  sft_lora.mutable_sft()->mutable_lora()->set_rank(2);
  ppo_lora.mutable_ppo()->mutable_lora()->set_rank(2);
  std::string comparisons;
  for (int i = 0; i < 20; ++i)
    absl::StrAppend(&comparisons, "{\"prompt\":\"item ", i, "\",\"chosen\":\" good\",\"rejected\":\" bad\"}\n");
  for (v1::JobSpec job : {sft, sft_lora, ppo, ppo_lora, RewardModelJob()}) {
    if (job.has_reward_model()) ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), comparisons).ok());
    job.set_deterministic(true);
    v1::JobSpec checkpointed = job;
    if (job.has_sft()) checkpointed.mutable_sft()->set_gradient_checkpointing(true);
    if (job.has_reward_model()) checkpointed.mutable_reward_model()->set_gradient_checkpointing(true);
    if (job.has_ppo()) checkpointed.mutable_ppo()->set_gradient_checkpointing(true);
    auto plain = Make(job), same = Make(checkpointed);
    ASSERT_TRUE(plain.ok() && same.ok()) << plain.status() << same.status();
    EXPECT_FALSE((*plain)->model().gradient_checkpointing());
    EXPECT_TRUE((*same)->model().gradient_checkpointing());
    const absl::StatusOr<std::string> start = (*plain)->Digest();
    for (int64_t step = 1; step <= 2; ++step) {
      auto batch = job.has_ppo() ? Rollouts((*plain)->model(), step, 8, 100) : std::vector<v1::Sample>();
      if (job.ppo().has_lora()) {
        for (v1::Sample& sample : batch) sample.mutable_score()->clear_reference_log_probs();
      }
      const auto result = (*plain)->RunStep(step, batch), again = (*same)->RunStep(step, batch);
      ASSERT_TRUE(result.ok() && again.ok()) << result.status() << again.status();
      ASSERT_TRUE(result->trained);
      EXPECT_EQ(result->metrics, again->metrics);
    }
    EXPECT_NE(*start, *(*plain)->Digest());
    EXPECT_EQ(*(*plain)->Digest(), *(*same)->Digest()) << job.DebugString();
  }
}

TEST_F(TrainerTest, ALoraPolicyTrainsItsAdaptersAgainstItsOwnBase) {
  v1::JobSpec job = PpoJob(256);
  job.mutable_ppo()->mutable_policy_optimizer()->set_learning_rate(1e-2);
  job.mutable_ppo()->mutable_lora()->set_rank(4);
  job.mutable_ppo()->mutable_lora()->set_alpha(8);
  auto trainer = Make(job);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  const auto base = model::LoadModel(dir_.File("model"));
  ASSERT_TRUE(base.ok());
  double kl = 0;
  for (int64_t step = 1; step <= 6; ++step) {
    auto batch = Rollouts((*trainer)->model(), step, 256, 100);
    // Nobody else computes a reference for such a job.
    for (v1::Sample& sample : batch) sample.mutable_score()->clear_reference_log_probs();
    const auto result = (*trainer)->RunStep(step, batch);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(result->trained) << result->refusal;
    kl = result->metrics.at("kl");
    if (step == 1) {
      EXPECT_NEAR(kl, 0, 1e-5);  // fresh adapters are the base
    }
  }
  EXPECT_GT(kl, 1e-4);  // and trained ones are not
  // The base has not moved, and is held once.
  for (size_t i = 0; i < (*base)->named_parameters().size(); ++i) {
    EXPECT_TRUE(torch::equal((*base)->named_parameters()[i].second, (*trainer)->model().named_parameters()[i].second));
  }
  const std::string out = dir_.File("out");
  ASSERT_TRUE(MakeDirs(out).ok());
  ASSERT_TRUE((*trainer)->Finish(out).ok());
  const auto merged = model::LoadModel(out);
  ASSERT_TRUE(merged.ok()) << merged.status();
  ASSERT_TRUE(model::LoadAdapter(out + "/adapter", base->get()).ok());
  const torch::NoGradGuard no_grad;
  const auto hidden = [](const model::Transformer& m) {
    return m.Hidden(model::PackedBatch::FromSequences({{1, 70, 80}}));
  };
  EXPECT_TRUE(torch::allclose(hidden(**merged), hidden((*trainer)->model()), 1e-4, 1e-5));
  EXPECT_TRUE(torch::equal(hidden(**base), hidden((*trainer)->model())));
}

TEST_F(TrainerTest, ALoraPolicyAndItsReferenceAreOneModelInMemory) {
  int64_t alone = 0;
  {
    const auto memory = std::make_shared<TensorMemory>();
    const c10::DebugInfoGuard counting(c10::DebugInfoKind::PROFILER_STATE, memory);
    const auto model = model::LoadModel(dir_.File("model"));
    ASSERT_TRUE(model.ok()) << model.status();
    alone = memory->live();
  }
  v1::JobSpec job = PpoJob(8);
  job.mutable_ppo()->set_advantage(v1::RLOO);  // no critic
  job.mutable_ppo()->set_samples_per_prompt(2);
  job.mutable_ppo()->mutable_lora()->set_rank(1);
  const auto memory = std::make_shared<TensorMemory>();
  const c10::DebugInfoGuard counting(c10::DebugInfoKind::PROFILER_STATE, memory);
  const auto trainer = Make(job);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  int64_t base = 0;
  for (const auto& [name, parameter] : (*trainer)->model().named_parameters())
    base += static_cast<int64_t>(parameter.nbytes());
  EXPECT_GE(memory->live(), base);
  EXPECT_LT(memory->live(), alone + base / 2);  // adapters, their gradients and moments
}

TEST_F(TrainerTest, ALoraCheckpointGoesOnToTheSameBytes) {
  v1::JobSpec job = SftJob(6);
  job.mutable_sft()->mutable_lora()->set_rank(2);
  job.mutable_sft()->mutable_lora()->add_target_modules("q_proj");
  auto whole = Make(job), resumed = Make(job);
  ASSERT_TRUE(whole.ok() && resumed.ok()) << whole.status();
  const std::string checkpoint = dir_.File("checkpoint");
  ASSERT_TRUE(MakeDirs(checkpoint).ok());
  for (int64_t step = 1; step <= 4; ++step) {
    ASSERT_TRUE((*whole)->RunStep(step, {}).ok());
    if (step == 2) {
      ASSERT_TRUE((*whole)->SaveCheckpoint(checkpoint).ok());
    }
  }
  ASSERT_TRUE((*resumed)->LoadCheckpoint(checkpoint).ok());
  for (int64_t step = 3; step <= 4; ++step) ASSERT_TRUE((*resumed)->RunStep(step, {}).ok());
  EXPECT_EQ(model::WeightsDigest((*whole)->model()), model::WeightsDigest((*resumed)->model()));
  v1::JobSpec wide = SftJob(30);
  wide.mutable_sft()->mutable_lora()->set_rank(4);
  auto learns = Make(wide);
  ASSERT_TRUE(learns.ok()) << learns.status();
  double first = 0, last = 0;
  for (int64_t step = 1; step <= 30; ++step) {
    const auto result = (*learns)->RunStep(step, {});
    ASSERT_TRUE(result.ok()) << result.status();
    last = result->metrics.at("loss");
    if (step == 1) first = last;
  }
  // The tiny model's frozen embedding bounds what its adapters can say.
  EXPECT_LT(last, first - 0.1);
  job.mutable_sft()->mutable_lora()->set_target_modules(0, "no_proj");
  EXPECT_THAT(std::string(Make(job).status().message()), HasSubstr("no_proj"));
}

TEST_F(TrainerTest, ARewardModelLearnsWhatIsPreferred) {
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

TEST_F(TrainerTest, EveryCriterionHasAHeadOfItsOwn) {
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
    const auto tokens = EncodeForReward(**tokenizer, "item 7", {}, answer, true);
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

TEST_F(TrainerTest, TiesAreHalfLabelsUnlessTheyAreLeftOut) {
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
        sequences.push_back(*EncodeForReward(**tokenizer, absl::StrCat("item ", i), {}, answer, true));
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

TEST_F(TrainerTest, StrengthIsAMarginOfDecidedPairs) {
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

TEST_F(TrainerTest, BadDataIsNamed) {
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), "{\"prompt\":\"a\",\"reponse\":\"b\"}\n").ok());
  EXPECT_THAT(std::string(Make(SftJob(1)).status().message()), HasSubstr("data.jsonl:1"));
  ASSERT_TRUE(
      WriteFileDurably(dir_.File("data.jsonl"), "{\"prompt\":\"" + std::string(400, 'x') + "\",\"response\":\"b\"}\n")
          .ok());
  EXPECT_THAT(std::string(Make(SftJob(1)).status().message()), HasSubstr("expected at most 64"));
}

}  // namespace
}  // namespace rlhf::learner
