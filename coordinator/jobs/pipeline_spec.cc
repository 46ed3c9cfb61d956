#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/spec_loader.h"
#include "coordinator/jobs/spec.h"
#include "coordinator/jobs/spec_checker.h"
#include "coordinator/jobs/stage_metrics.h"
#include "coordinator/names.h"
#include "coordinator/oversight.h"

namespace rlhf::coordinator {
namespace {

bool MakesModel(const v1::StageSpec& stage) {
  return stage.has_sft() || stage.has_reward_model() || stage.has_ppo();
}

// Whether a condition on the worst slice, of the stage whose result it bounds, is right.
bool CheckWorst(SpecChecker& check, const v1::GateCondition& condition, const WorstOf& worst,
                const v1::StageSpec& stage) {
  const auto problem = [&](const std::string& expected) {
    check.Problem("gate.conditions", absl::StrCat(expected, ", found \"", condition.metric(), "\""));
    return false;
  };
  if (worst.metric.empty()) return problem("expected worst.METRIC or worst.METRIC{TAG,TAG}");
  if (!stage.has_evaluate() && !stage.has_reward_model() && !stage.has_collect())
    return problem("expected worst.METRIC of a stage whose result has slices (evaluate, reward_model, collect)");
  for (const std::string& tag : worst.tags) {
    if (tag.empty() || tag.find('=') != std::string::npos)
      return problem("expected names of tags in worst.METRIC{TAG,TAG}, without values");
    const auto& slices = stage.evaluate().slices();
    if (!slices.empty() && std::find(slices.begin(), slices.end(), tag) == slices.end()) {
      return problem(
          absl::StrCat("expected tags that the evaluation declares as slices (", absl::StrJoin(slices, ", "), ")"));
    }
  }
  return true;
}

using Earlier = std::map<std::string, const v1::StageSpec*>;

bool MayHave(const v1::StageSpec& stage, const std::string& metric) {
  const std::optional<WorstOf> worst = ParseWorst(metric);
  return worst ? MayHaveSlices(stage, worst->metric) : MayHaveMetric(stage, metric);
}

// The bounded stage's own metric, or where a condition names no stage also "STAGE.METRIC".
bool Known(const Earlier& earlier, const v1::GateCondition& condition, const v1::StageSpec& of) {
  if (MayHave(of, condition.metric())) return true;
  const auto whole = [&](const v1::StageSpec& made_by) {
    absl::string_view metric = condition.metric();
    return absl::ConsumePrefix(&metric, made_by.name()) && absl::ConsumePrefix(&metric, ".") &&
           MayHaveMetric(made_by, metric);
  };
  return condition.stage().empty() && (whole(of) || std::any_of(earlier.begin(), earlier.end(), [&](const auto& entry) {
                                         return whole(*entry.second);
                                       }));
}

// Whether a stage has run whenever the gate after another looks.
bool HasRun(const v1::PipelineSpec& pipeline, const v1::StageSpec& stage, const v1::StageSpec& gate_after) {
  for (const v1::StageSpec& each : pipeline.stages()) {
    if (pipeline.repeat_from().empty() || each.name() == pipeline.repeat_from()) break;
    if (&each == &stage) return true;  // before the rounds
  }
  return stage.from_round() <= std::max(1, gate_after.from_round());
}

// A metric that nothing makes would close the gate, after hours of training.
void CheckMetric(SpecChecker& check, const Earlier& earlier, const v1::StageSpec& stage, int index) {
  const v1::GateCondition& condition = stage.gate().conditions(index);
  const v1::StageSpec& of = condition.stage().empty() ? stage : *earlier.at(condition.stage());
  // Of a stage whose kind is missing, or a condition without a metric, that is said already.
  if (of.kind_case() == v1::StageSpec::KIND_NOT_SET || condition.metric().empty() || Known(earlier, condition, of))
    return;
  const auto listed = [](const v1::StageSpec& made_by) {
    const std::vector<std::string> names = MetricsOfStage(made_by);
    return absl::StrCat("\"", made_by.name(), "\" has ", names.empty() ? "none" : absl::StrJoin(names, ", "));
  };
  std::string problem =
      absl::StrCat("the gate after \"", stage.name(), "\": expected a metric of a stage that has run, found \"",
                   condition.metric(), "\"");
  const std::string near = NearestName(condition.metric(), MetricsOfStage(of));
  const auto other = std::find_if(earlier.begin(), earlier.end(), [&](const auto& entry) {
    return condition.stage().empty() && MayHave(*entry.second, condition.metric());
  });
  if (other != earlier.end()) {
    absl::StrAppend(&problem, " (did you mean {stage: ", other->first, ", metric: ", condition.metric(), "}?)");
  } else if (!near.empty()) {
    absl::StrAppend(&problem, " (did you mean \"", near, "\"?)");
  }
  // Last, for an error that is long is cut.
  absl::StrAppend(&problem, "; ", listed(of));
  if (condition.stage().empty()) {
    for (const auto& [name, other] : earlier) absl::StrAppend(&problem, "; with `stage`: ", listed(*other));
  }
  check.Problem(absl::StrCat("gate.conditions[", index, "].metric"), problem);
}

void Gate(SpecChecker& check, const v1::PipelineSpec& pipeline, const Earlier& earlier, const v1::StageSpec& stage,
          v1::GateSpec* gate) {
  check.AtLeast("gate.required_approvals", gate->required_approvals(), 0);
  if (gate->on_closed() == v1::GATE_CLOSED_UNSPECIFIED) gate->set_on_closed(v1::GATE_ENDS);
  if (gate->max_repeats() == 0) gate->set_max_repeats(1);
  check.Range("gate.max_repeats", gate->max_repeats(), 1, 100);
  if (!gate->approves().empty()) {
    const auto it = earlier.find(gate->approves());
    const v1::StageSpec* approved = gate->approves() == stage.name() ? &stage
                                    : it == earlier.end()            ? nullptr
                                                                     : it->second;
    if (approved == nullptr || !(approved->has_ppo() || approved->has_sft()))
      check.Problem("gate.approves", absl::StrCat("expected this or an earlier stage that makes a policy, found \"",
                                                  gate->approves(), "\""));
  }
  if (!gate->publish_as().empty()) {
    if (const absl::Status status = CheckAlias("publish_as", gate->publish_as()); !status.ok())
      check.Problem("gate.publish_as", std::string(status.message()));
    if (gate->approves().empty()) check.Problem("gate.approves", "expected the stage whose model is published");
    if (gate->required_approvals() < 1)
      check.Problem("gate.required_approvals",
                    "expected at least 1: nothing is published as approved without a person");
  }
  for (int i = 0; i < gate->conditions_size(); ++i) {
    const v1::GateCondition& condition = gate->conditions(i);
    const auto it = earlier.find(condition.stage());
    if (!condition.stage().empty() && it == earlier.end()) {
      check.Problem("gate.conditions", absl::StrCat("expected an earlier stage, found \"", condition.stage(), "\""));
      continue;
    }
    if (it != earlier.end() && !HasRun(pipeline, *it->second, stage)) {
      check.Problem(absl::StrCat("gate.conditions[", i, "].stage"),
                    absl::StrCat("expected a stage that has run when the gate after \"", stage.name(),
                                 "\" (from_round ", std::max(1, stage.from_round()), ") looks, found \"",
                                 condition.stage(), "\", which runs from round ", it->second->from_round(), " on"));
      continue;
    }
    const auto worst = ParseWorst(condition.metric());
    if (worst && !CheckWorst(check, condition, *worst, it == earlier.end() ? stage : *it->second)) continue;
    CheckMetric(check, earlier, stage, i);
  }
}

}  // namespace

void CheckPipeline(SpecChecker& check, v1::JobSpec* spec) {
  v1::PipelineSpec* pipeline = spec->mutable_pipeline();
  if (pipeline->stages().empty()) check.Problem("pipeline.stages", "expected at least one stage, found none");
  if (pipeline->rounds() == 0) pipeline->set_rounds(1);
  check.Range("pipeline.rounds", pipeline->rounds(), 1, 100);
  bool approves = false, repeats_from = pipeline->repeat_from().empty();
  for (const v1::StageSpec& stage : pipeline->stages()) {
    approves = approves || !stage.gate().approves().empty();
    repeats_from = repeats_from || stage.name() == pipeline->repeat_from();
  }
  if (!repeats_from)
    check.Problem("pipeline.repeat_from",
                  absl::StrCat("expected the name of a stage, found \"", pipeline->repeat_from(), "\""));
  Earlier earlier;
  for (int i = 0; i < pipeline->stages_size(); ++i) {
    v1::StageSpec* stage = pipeline->mutable_stages(i);
    const std::string path = absl::StrCat("pipeline.stages[", i, "]");
    {
      const SpecChecker::Scope scope(&check, path);
      if (const absl::Status status = CheckName("name", stage->name()); !status.ok())
        check.Problem("name", std::string(status.message()));
      if (earlier.count(stage->name()) > 0)
        check.Problem("name", absl::StrCat("expected each stage's own name, found \"", stage->name(), "\" twice"));
      if (stage->kind_case() == v1::StageSpec::KIND_NOT_SET)
        check.Problem("", "expected one of sft, reward_model, sample, collect, ppo, evaluate");
      if (stage->has_learners() && stage->learners().has_ranks())
        check.Range("learners.ranks", stage->learners().ranks(), 1, 1024);
      if (stage->learners().has_min_ranks())
        check.Range("learners.min_ranks", stage->learners().min_ranks(), 1, std::max(1, stage->learners().ranks()));
      CheckKind(check, stage);
      for (int c = 0; c < stage->gate().conditions_size(); ++c) {
        check.Required(absl::StrCat("gate.conditions[", c, "].metric"), stage->gate().conditions(c).metric(),
                       "a metric's name");
        if (!stage->gate().conditions(c).has_min() && !stage->gate().conditions(c).has_max()) {
          check.Problem(absl::StrCat("gate.conditions[", c, "]"), "expected min, max or both");
        }
      }
      if (stage->has_gate()) Gate(check, *pipeline, earlier, *stage, stage->mutable_gate());
      check.Range("from_round", stage->from_round(), 0, 100);
    }
    std::vector<Reference> references;
    ReferencesOfStage(absl::StrCat(path, "."), stage, &references);
    const auto first = [](std::string* out, const auto& entry) { out->append(entry.first); };
    for (const Reference& reference : references) {
      const bool approved = absl::StartsWith(*reference.value, "approved:");
      if (!approved && !absl::StartsWith(*reference.value, "stage:")) continue;
      const std::string name = reference.value->substr(reference.value->find(':') + 1);
      if (approved && !approves) {
        check.Problem(reference.field, "expected a gate of the pipeline that says which stage's model it `approves`");
      }
      const auto it = earlier.find(name);
      if (it == earlier.end()) {
        check.Problem(reference.field, absl::StrCat("expected an earlier stage (",
                                                    earlier.empty() ? "there is none before the first"
                                                                    : absl::StrJoin(earlier, ", ", first),
                                                    "), found \"", name, "\""));
      } else if (MakesModel(*it->second) != reference.model) {
        check.Problem(reference.field, absl::StrCat("expected a stage that makes ",
                                                    reference.model ? "a model" : "data", ", found \"", name, "\""));
      }
    }
    earlier[stage->name()] = stage;
  }
}

v1::JobSpec SpecOfStage(const v1::JobSpec& pipeline, const v1::StageSpec& stage, int round, int repeat) {
  v1::JobSpec spec;
  std::string suffix = absl::StrCat("-", stage.name());
  if (round > 1 || repeat > 0) absl::StrAppend(&suffix, "-r", round);
  if (repeat > 0) absl::StrAppend(&suffix, "-", repeat);
  spec.set_name(pipeline.name().substr(0, 63 - std::min<size_t>(63, suffix.size())) + suffix);
  spec.set_project(pipeline.project());
  // Far apart, so that pipelines with neighbouring seeds do not share a later round's.
  spec.set_seed(pipeline.seed() + 1'000'003ull * static_cast<uint64_t>(std::max(0, round - 1)) +
                10'000'019ull * static_cast<uint64_t>(repeat));
  spec.set_deterministic(pipeline.deterministic());
  spec.set_priority(pipeline.priority());
  *spec.mutable_labels() = pipeline.labels();
  *spec.mutable_learners() =
      stage.has_learners() && stage.learners().has_ranks() ? stage.learners() : pipeline.learners();
  if (stage.has_ppo() || stage.has_sft() || stage.has_reward_model())
    spec.mutable_retention()->set_checkpoints(pipeline.retention().checkpoints());
  if (stage.has_ppo()) spec.mutable_retention()->set_sample_steps(pipeline.retention().sample_steps());
  if (stage.has_sft()) *spec.mutable_sft() = stage.sft();
  if (stage.has_reward_model()) *spec.mutable_reward_model() = stage.reward_model();
  if (stage.has_sample()) *spec.mutable_sample() = stage.sample();
  if (stage.has_collect()) *spec.mutable_collect() = stage.collect();
  if (stage.has_ppo()) *spec.mutable_ppo() = stage.ppo();
  if (stage.has_evaluate()) *spec.mutable_evaluate() = stage.evaluate();
  return spec;
}

}  // namespace rlhf::coordinator
