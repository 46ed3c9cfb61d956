#include "common/learner_inputs.h"

namespace rlhf {
namespace {

bool TrainsCritic(v1::AdvantageEstimator advantage) {
  switch (advantage) {
    case v1::RLOO:
    case v1::GRPO:
    case v1::GRPO_NO_STD:
    case v1::REINFORCE_BASELINE:
      return false;
    default:
      return true;
  }
}

}  // namespace

std::set<std::string> LearnerReferences(const v1::JobSpec& spec) {
  std::set<std::string> references;
  if (spec.has_sft()) {
    references = {spec.sft().model(), spec.sft().data()};
  } else if (spec.has_reward_model()) {
    references = {spec.reward_model().model(), spec.reward_model().data(), spec.reward_model().normalization_samples()};
  } else if (spec.has_ppo()) {
    references = {spec.ppo().policy()};
    if (TrainsCritic(spec.ppo().advantage())) references.insert(spec.ppo().critic());
    if (spec.ppo().ptx().coefficient() > 0) references.insert(spec.ppo().ptx().data());
  }
  references.erase("");
  return references;
}

}  // namespace rlhf
