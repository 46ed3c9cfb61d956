// Steps of training on the device against the CPU's.
#include <gtest/gtest.h>

#include "learner/trainer.h"
#include "model/weights_io.h"
#include "tests/gpu/gpu_test.h"
#include "tests/learner/drawn_samples.h"
#include "tests/learner/specs.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::learner {
namespace {

class GpuTrainingTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    MakeTinyModel(dir_.File("model"), 1);
    ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"),
                                 "{\"prompt\":\"the cat\",\"response\":\" sat on the mat\"}\n"
                                 "{\"prompt\":\"the dog\",\"response\":\" sat on the log\"}\n"
                                 "{\"prompt\":\"red\",\"response\":\" blue green\"}\n")
                    .ok());
    alone_ = MakeSingleRank();
  }
  std::unique_ptr<Trainer> Make(const v1::JobSpec& spec, torch::Device device) {
    TrainerInputs inputs;
    inputs.spec = spec;
    inputs.device = device;
    inputs.local = {{"model", dir_.File("model")}, {"data", dir_.File("data.jsonl")}};
    auto trainer = Trainer::Create(inputs);
    EXPECT_TRUE(trainer.ok()) << trainer.status();
    if (!trainer.ok()) return nullptr;
    (*trainer)->SetCollective(alone_.get());
    return *std::move(trainer);
  }
  static std::vector<v1::Sample> Rollouts(const model::Transformer& policy, int64_t step, int n) {
    return DrawSamples(policy, step, n, [](int32_t first) { return first < 140 ? 1 : 0; });
  }
  ScratchDir dir_;
  std::unique_ptr<Collective> alone_;
};

TEST_F(GpuTrainingTest, SftStepsAreTheCpus) {
  const auto here = Make(SftJob(5), torch::kCPU), there = Make(SftJob(5), device_);
  ASSERT_TRUE(here && there);
  for (int64_t step = 1; step <= 5; ++step) {
    const auto expected = here->RunStep(step, {}), found = there->RunStep(step, {});
    ASSERT_TRUE(expected.ok()) << expected.status();
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_NEAR(found->metrics.at("loss"), expected->metrics.at("loss"), 2e-3) << "step " << step;
  }
}

TEST_F(GpuTrainingTest, ACheckpointGoesOnOnTheDevice) {
  const auto whole = Make(SftJob(4), device_), resumed = Make(SftJob(4), device_);
  ASSERT_TRUE(whole && resumed);
  const std::string checkpoint = dir_.File("checkpoint");
  ASSERT_TRUE(MakeDirs(checkpoint).ok());
  for (int64_t step = 1; step <= 2; ++step) ASSERT_TRUE(whole->RunStep(step, {}).ok());
  ASSERT_TRUE(whole->SaveCheckpoint(checkpoint).ok());
  ASSERT_TRUE(resumed->LoadCheckpoint(checkpoint).ok());
  EXPECT_EQ(model::WeightsDigest(whole->model()), model::WeightsDigest(resumed->model()));
  ASSERT_TRUE(resumed->RunStep(3, {}).ok());
  EXPECT_NE(model::WeightsDigest(whole->model()), model::WeightsDigest(resumed->model()));
  resumed->RevertStep();
  EXPECT_EQ(model::WeightsDigest(whole->model()), model::WeightsDigest(resumed->model()));
}

TEST_F(GpuTrainingTest, APpoStepIsTheCpus) {
  const auto here = Make(PpoJob(64), torch::kCPU), there = Make(PpoJob(64), device_);
  ASSERT_TRUE(here && there);
  const std::vector<v1::Sample> samples = Rollouts(here->model(), 1, 64);
  const auto expected = here->RunStep(1, samples), found = there->RunStep(1, samples);
  ASSERT_TRUE(expected.ok()) << expected.status();
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_TRUE(found->trained);
  for (const auto& [name, value] : expected->metrics) {
    if (name.find("seconds") != std::string::npos || name.find("per_second") != std::string::npos) continue;
    EXPECT_NEAR(found->metrics.at(name), value, 2e-2 * std::max(1.0, std::abs(value))) << name;
  }
}

}  // namespace
}  // namespace rlhf::learner
