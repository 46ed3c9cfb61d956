#include "common/known_fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/unsuited.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf {
namespace {

TEST(KnownFields, AMessageOfThisReleaseHasNoNewerParts) {
  v1::JobSpec spec;
  spec.set_name("a");
  spec.mutable_ppo()->mutable_policy_optimizer()->set_schedule(v1::COSINE);
  spec.mutable_ppo()->mutable_scorer()->add_components()->mutable_length();
  EXPECT_TRUE(NewerParts(spec).empty());
  EXPECT_TRUE(CheckKnown(spec, "the job's specification", "this learner").ok());
}

TEST(KnownFields, FieldsAndValuesOfANewerReleaseAreNamedByTheirPath) {
  v1::JobSpec spec;
  v1::RewardComponent* const second =
      (spec.mutable_ppo()->mutable_scorer()->add_components(), spec.mutable_ppo()->mutable_scorer()->add_components());
  second->GetReflection()->MutableUnknownFields(second)->AddVarint(900, 1);
  spec.mutable_ppo()->mutable_policy_optimizer()->set_schedule(static_cast<v1::LearningRateSchedule>(77));
  std::vector<std::string> fields;
  for (const NewerPart& part : NewerParts(spec)) fields.push_back(part.field);
  EXPECT_THAT(fields, testing::UnorderedElementsAre("ppo.scorer.components[1].#900", "ppo.policy_optimizer.schedule"));
  const absl::Status status = CheckKnown(spec, "the job's specification", "this learner");
  EXPECT_TRUE(IsUnsuited(status));
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(testing::HasSubstr("the job's specification"), testing::HasSubstr("update this learner")));
}

TEST(KnownFields, NoMoreAreNamedThanAskedFor) {
  v1::JobSpec spec;
  for (int i = 0; i < 100; ++i) spec.GetReflection()->MutableUnknownFields(&spec)->AddVarint(900 + i, 1);
  EXPECT_EQ(NewerParts(spec, 3).size(), 3u);
}

}  // namespace
}  // namespace rlhf
