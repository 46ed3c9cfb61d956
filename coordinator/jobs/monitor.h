// Watches a PPO job for reward hacking: the proxy rises while what people want falls (Gao et al. 2022). Pure logic; the
// same steps give the same alarms, so a restart or a replay changes nothing.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/jobs/gold_windows.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

// What one step's batch says. Keys: "score", "score_std", "gold", "gold_std" and "gold/CATEGORY" (means of the gold
// scorer; prompts without a category are together "uncategorised"), "kl" (nats a sequence, from the learner), "length"
// (tokens), "repetition" (mean share of 3-grams of tokens that repeat an earlier one of the same response),
// "reward_length" (Pearson's r of score and length), "outside" (share of samples with |score| > `outside_deviations`:
// the reward model's scores have deviation 1 on the reference policy), "cut_by_context" (share of samples that the
// model's context cut before `max_new_tokens`). Takes tens of milliseconds for thousands of samples; any thread.
v1::MonitorStep ObserveStep(int64_t step, const std::vector<v1::Sample>& batch, double kl, double outside_deviations,
                            int max_new_tokens);

class Monitor {
 public:
  explicit Monitor(v1::MonitorSpec spec);
  bool on() const { return on_; }
  double outside_deviations() const { return spec_.outside_deviations(); }
  // Steps in order; one that was seen before (a replay) replaces what was seen since. Returns the alarms of this step.
  std::vector<v1::Alert> Add(const v1::MonitorStep& step);
  // What `max_gold_gap` bounds: from the first window to the last, the rise of the score minus the rise of the gold
  // score, each in standard deviations of the first window's: the first one in which both scores vary. Nothing before
  // there is such a window, or without gold scores.
  std::optional<double> GoldGap() const;
  const std::vector<v1::MonitorStep>& steps() const { return steps_; }

 private:
  using Values = std::map<std::string, double>;
  Values Window(size_t end) const;  // means of the steps before `end`; keys that all of them have
  std::vector<v1::Alert> Check() const;

  v1::MonitorSpec spec_;
  bool on_ = false;
  std::vector<v1::MonitorStep> steps_;
  GoldWindows gold_windows_;
};

// The share of 3-grams that are repetitions; 0 for less than four tokens.
double Repetition(const std::vector<int32_t>& tokens);
// Pearson's r; 0 when either does not vary.
double Correlation(const std::vector<double>& x, const std::vector<double>& y);

}  // namespace rlhf::coordinator
