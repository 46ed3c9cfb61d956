#include "coordinator/jobs/stage_metrics.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "coordinator/jobs/cut_answers.h"

namespace rlhf::coordinator {
namespace {

// A name, or all names begin ANY end, or begin ANY end ANY: `open` and `last` say what stands in these places.
struct Form {
  std::string begin, open, end, last;
  bool slices = false;

  bool Matches(absl::string_view name) const {
    if (open.empty()) return name == begin;
    if (!absl::ConsumePrefix(&name, begin) || name.empty()) return false;
    if (last.empty()) return absl::ConsumeSuffix(&name, end) && !name.empty();
    const size_t at = name.find(end, 1);
    return at != absl::string_view::npos && at + end.size() < name.size();
  }
  std::string Text() const { return absl::StrCat(begin, open, end, last); }
};
using Forms = std::vector<Form>;

void Add(Forms* forms, std::initializer_list<const char*> names, bool slices = false) {
  for (const char* name : names) forms->push_back({name, "", "", "", slices});
}

// What a scorer records of each answer: its components, and the parts of those that have several.
Forms Scores(const v1::ScorerSpec& scorer) {
  Forms forms;
  for (const v1::RewardComponent& c : scorer.components()) {
    forms.push_back({c.name(), "", "", ""});
    if (c.has_ensemble()) forms.push_back({c.name() + "/", "MEMBER", "", ""});
    if (c.has_reward_model()) forms.push_back({c.name() + "/", "CRITERION", "", ""});
  }
  return forms;
}

void AddCalibration(Forms* forms) {
  forms->push_back({"calibration/", "BIN", "", ""});
  forms->push_back({"calibration.confidence/", "BIN", "", ""});
}

Forms RewardModel(const v1::RewardModelSpec& spec) {
  Forms forms;
  if (spec.held_out_fraction() == 0) return forms;  // they are measured on what is held out
  Add(&forms, {"accuracy", "log_loss", "ece"}, /*slices=*/true);
  Add(&forms, {"baseline.length.accuracy", "baseline.random.accuracy", "length_correlation"});
  AddCalibration(&forms);
  return forms;
}

Forms Collect(const v1::CollectSpec& spec) {
  Forms forms;
  Add(&forms, {"comparisons", "ties", "agreement", "agreement.kappa"});
  Add(&forms, {"agreement.alpha"}, /*slices=*/true);
  if (!spec.planted().empty() || !spec.previous().empty()) Add(&forms, {"planted_accuracy"});
  if (spec.against().empty()) return forms;
  Add(&forms, {"win_rate"}, /*slices=*/true);
  forms.push_back({"", "CATEGORY", ".win_rate", ""});
  return forms;
}

void AddScores(const std::string& prefix, const v1::ScorerSpec& scorer, Forms* forms) {
  for (Form& form : Scores(scorer)) {
    form.begin.insert(0, prefix);
    forms->push_back(std::move(form));
  }
}

Forms Ppo(const v1::PpoSpec& spec) {
  Forms forms;
  Add(&forms, {"approx_kl", "clip_ratio", "entropy", "eos_ratio", "first_minibatch_ratio_error", "grad_norm/policy",
               "importance_weight/mean", "kl", "kl_coefficient", "learning_rate", "loss/policy", "mismatch_kl",
               "response_length", "reward/mean", "reward/std", "tokens"});
  if (spec.advantage() == v1::GAE)
    Add(&forms, {"explained_variance", "grad_norm/critic", "learning_rate/critic", "loss/value"});
  if (spec.kl().form() == v1::KL_LOSS_K2 || spec.kl().form() == v1::KL_LOSS_K3) Add(&forms, {"loss/kl"});
  if (!spec.ptx().data().empty()) Add(&forms, {"loss/ptx"});
  if (spec.sampling().top_p() < 1 || spec.sampling().top_k() > 0) Add(&forms, {"kept_mass"});
  AddScores("component/", spec.scorer(), &forms);
  Add(&forms, {"monitor/alarms", "monitor/cut_by_context", "monitor/kl", "monitor/length", "monitor/outside",
               "monitor/repetition", "monitor/reward_length", "monitor/score", "monitor/score_std"});
  if (spec.gold().components().empty()) return forms;
  Add(&forms, {"gold/mean", "monitor/gold", "monitor/gold_gap", "monitor/gold_std"});
  forms.push_back({"monitor/gold/", "CATEGORY", "", ""});
  AddScores("gold/", spec.gold(), &forms);
  return forms;
}

Forms Evaluate(const v1::EvaluateSpec& spec) {
  Forms forms;
  Add(&forms, {kCutByContext});
  bool exact = false, abstention = false, claim = false;
  for (const v1::RewardComponent& grader : spec.graders().components()) {
    exact = exact || grader.has_exact_answer();
    abstention = abstention || grader.has_abstention();
    claim = claim || grader.has_action_claim();
  }
  if (exact) Add(&forms, {"known.accuracy"}, /*slices=*/true);
  if (abstention)
    Add(&forms, {"known.needless_abstention", "unknown.hallucination", "unknown.abstention"}, /*slices=*/true);
  if (claim) Add(&forms, {"action.over_claim"}, /*slices=*/true);
  if (!spec.against().empty()) {
    Add(&forms, {"win_rate", "score_change", "length_change"}, /*slices=*/true);
    if (abstention) Add(&forms, {"refusal_change"}, /*slices=*/true);
    Add(&forms, {"disparity", "disparity_before", "disparity_rise"});
  }
  if (!spec.confidence_pattern().empty()) {
    Add(&forms, {"calibration.stated"});
    if (exact) {
      Add(&forms, {"calibration.ece"});
      AddCalibration(&forms);
    }
  }
  for (Form& form : Scores(spec.graders())) {
    form.slices = true;
    forms.push_back(form);
    forms.push_back({"", "CATEGORY", absl::StrCat(".", form.begin), form.open, /*slices=*/true});
  }
  return forms;
}

Forms FormsOf(const v1::StageSpec& stage) {
  Forms forms;
  if (stage.has_sft()) Add(&forms, {"loss"});
  if (stage.has_reward_model()) return RewardModel(stage.reward_model());
  if (stage.has_sample()) Add(&forms, {kCutByContext, "response_length"});
  if (stage.has_sample() && !stage.sample().scorer().components().empty()) Add(&forms, {"score"});
  if (stage.has_collect()) return Collect(stage.collect());
  if (stage.has_ppo()) return Ppo(stage.ppo());
  if (stage.has_evaluate()) return Evaluate(stage.evaluate());
  return forms;
}

}  // namespace

bool MayHaveMetric(const v1::StageSpec& stage, absl::string_view metric) {
  const Forms forms = FormsOf(stage);
  if (std::any_of(forms.begin(), forms.end(), [&](const Form& form) { return form.Matches(metric); })) return true;
  const size_t brace = metric.find('{');
  return brace != absl::string_view::npos && metric.back() == '}' && MayHaveSlices(stage, metric.substr(0, brace));
}

bool MayHaveSlices(const v1::StageSpec& stage, absl::string_view metric) {
  const Forms forms = FormsOf(stage);
  return std::any_of(forms.begin(), forms.end(), [&](const Form& form) { return form.slices && form.Matches(metric); });
}

std::vector<std::string> MetricsOfStage(const v1::StageSpec& stage) {
  std::vector<std::string> names;
  for (const Form& form : FormsOf(stage)) names.push_back(form.Text());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace rlhf::coordinator
