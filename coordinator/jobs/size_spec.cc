#include "coordinator/jobs/size_spec.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"

namespace rlhf::coordinator {
namespace {

void Ppo(SpecChecker& check, const v1::PpoSpec& s) {
  const SpecChecker::Scope scope(&check, "ppo");
  const int64_t step = static_cast<int64_t>(s.prompts_per_step()) * s.samples_per_prompt();
  if (s.prompts_per_step() > 0 && step > kMostSamplesAStep) {
    check.Problem("prompts_per_step",
                  absl::StrCat("expected at most ", kMostSamplesAStep,
                               " samples a step (prompts_per_step times samples_per_prompt), found ", step));
  }
  const int64_t steps = int64_t{1} + std::max(0, s.max_policy_lag());
  if (step <= kMostSamplesAStep && step * steps > kMostSamplesOfSteps) {
    check.Problem("max_policy_lag",
                  absl::StrCat("expected at most ", kMostSamplesOfSteps,
                               " samples of max_policy_lag + 1 steps together, found ", step * steps));
  }
  check.AtMost("epochs", s.epochs(), kMostEpochs);
  check.AtMost("ptx.batch_size", s.ptx().batch_size(), kMostLinesAStep);
  check.AtMost("max_attempts", s.max_attempts(), kMostAttempts);
}

template <typename Message>
void Sizes(SpecChecker& check, const Message& m) {
  if (m.has_sft()) check.AtMost("sft.batch_size", m.sft().batch_size(), kMostLinesAStep);
  if (m.has_reward_model()) {
    check.AtMost("reward_model.batch_size", m.reward_model().batch_size(), kMostLinesAStep);
    check.AtMost("reward_model.epochs", m.reward_model().epochs(), kMostEpochs);
  }
  if (m.has_sample()) check.AtMost("sample.samples_per_prompt", m.sample().samples_per_prompt(), kMostSamplesPerPrompt);
  if (m.has_collect()) check.AtMost("collect.comparisons", m.collect().comparisons(), kMostComparisons);
  if (m.has_ppo()) Ppo(check, m.ppo());
}

}  // namespace

void CheckSizes(SpecChecker& check, const v1::JobSpec& job) {
  Sizes(check, job);
}

void CheckSizes(SpecChecker& check, const v1::StageSpec& stage) {
  Sizes(check, stage);
}

std::string SizeProblems(const v1::JobSpec& job) {
  std::vector<v1::SpecProblem> problems;
  SpecChecker check(&problems);
  CheckSizes(check, job);
  return JoinProblems(problems);
}

}  // namespace rlhf::coordinator
