// What trainers of every kind do: they learn, go on from checkpoints and name bad data; and LoRA policies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/lora.h"
#include "tests/learner/trainer_fixture.h"
#include "tests/testing/tensor_memory.h"

namespace rlhf::learner {
namespace {

using testing::HasSubstr;

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
    if (step == 3) {
      ASSERT_TRUE((*whole)->SaveCheckpoint(checkpoint).ok());
    }
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

TEST_F(TrainerTest, GradientCheckpointingEndsInTheSameBytes) {
  v1::JobSpec sft = SftJob(2, 16), sft_lora = sft, ppo = PpoJob(8, 30), ppo_lora = ppo;
  sft_lora.mutable_sft()->mutable_lora()->set_rank(2);
  ppo_lora.mutable_ppo()->mutable_lora()->set_rank(2);
  std::string comparisons;
  for (int i = 0; i < 20; ++i)
    absl::StrAppend(&comparisons, "{\"prompt\":\"item ", i, "\",\"chosen\":\" good\",\"rejected\":\" bad\"}\n");
  for (v1::JobSpec job : {sft, sft_lora, ppo, ppo_lora, RewardModelJob()}) {
    if (job.has_reward_model()) {
      ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), comparisons).ok());
    }
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
