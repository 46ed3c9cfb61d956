// What a job's learners are given of its references, and so what they download.
#include "common/learner_inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "learner/advantage/interface.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::learner {
namespace {

using testing::UnorderedElementsAre;

v1::JobSpec WholePpo() {
  v1::JobSpec job;
  v1::PpoSpec* ppo = job.mutable_ppo();
  ppo->set_policy("policy");
  ppo->set_reference("reference");
  ppo->set_critic("critic");
  ppo->set_prompts("prompts");
  ppo->mutable_scorer()->add_components()->mutable_reward_model()->set_model("reward model");
  ppo->mutable_gold()->add_components()->mutable_ensemble()->add_models("gold model");
  ppo->mutable_ptx()->set_data("ptx");
  ppo->set_advantage(v1::GAE);
  return job;
}

TEST(LearnerReferencesTest, OfPpoThePolicyTheCriticAndWhatIsMixedIn) {
  v1::JobSpec job = WholePpo();
  EXPECT_THAT(LearnerReferences(job), UnorderedElementsAre("policy", "critic"));
  job.mutable_ppo()->mutable_ptx()->set_coefficient(0.1);
  EXPECT_THAT(LearnerReferences(job), UnorderedElementsAre("policy", "critic", "ptx"));
  job.mutable_ppo()->set_critic("policy");
  EXPECT_THAT(LearnerReferences(job), UnorderedElementsAre("policy", "ptx"));
}

TEST(LearnerReferencesTest, ACriticWhereItsEstimatorNeedsOne) {
  const auto* values = v1::AdvantageEstimator_descriptor();
  for (int i = 0; i < values->value_count(); ++i) {
    const auto advantage = static_cast<v1::AdvantageEstimator>(values->value(i)->number());
    v1::JobSpec job = WholePpo();
    job.mutable_ppo()->set_advantage(advantage);
    EXPECT_EQ(LearnerReferences(job).count("critic") > 0, MakeAdvantageEstimator(advantage)->needs_critic())
        << values->value(i)->name();
  }
}

TEST(LearnerReferencesTest, OfOtherKindsTheirModelAndTheirData) {
  v1::JobSpec sft, reward, sample;
  sft.mutable_sft()->set_model("model");
  sft.mutable_sft()->set_data("data");
  EXPECT_THAT(LearnerReferences(sft), UnorderedElementsAre("model", "data"));
  reward.mutable_reward_model()->set_model("model");
  reward.mutable_reward_model()->set_data("comparisons");
  EXPECT_THAT(LearnerReferences(reward), UnorderedElementsAre("model", "comparisons"));
  reward.mutable_reward_model()->set_normalization_samples("samples");
  EXPECT_THAT(LearnerReferences(reward), UnorderedElementsAre("model", "comparisons", "samples"));
  sample.mutable_sample()->set_model("model");
  EXPECT_TRUE(LearnerReferences(sample).empty());
}

}  // namespace
}  // namespace rlhf::learner
