#include "coordinator/jobs/spec.h"

#include <google/protobuf/message.h>

#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/jobs/numerics_spec.h"
#include "coordinator/jobs/spec_checker.h"
#include "coordinator/names.h"

namespace rlhf::coordinator {
namespace {

constexpr size_t kLargestSpec = 1 << 20;
constexpr int kMostStages = 100, kMostConditions = 1000;

// How many entries lists have that are within the message, or more than `most`. Two bytes make one, and each costs a
// hundred times as much memory, and time wherever the message is copied.
int Entries(const google::protobuf::Message& message, int most) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  int entries = reflection.GetUnknownFields(message).field_count();
  for (const auto* field : fields) {
    if (entries > most) break;
    if (field->is_repeated()) entries += reflection.FieldSize(message, field);
    if (field->cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE || field->is_map()) continue;
    if (!field->is_repeated()) {
      entries += Entries(reflection.GetMessage(message, field), most - entries);
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(message, field) && entries <= most; ++i)
      entries += Entries(reflection.GetRepeatedMessage(message, field, i), most - entries);
  }
  return entries;
}

void ScorerReferences(const std::string& path, v1::ScorerSpec* scorer, std::vector<Reference>* out) {
  for (int i = 0; i < scorer->components_size(); ++i) {
    if (scorer->components(i).has_ensemble()) {
      int m = 0;
      for (std::string& model : *scorer->mutable_components(i)->mutable_ensemble()->mutable_models())
        out->push_back({absl::StrCat(path, ".components[", i, "].ensemble.models[", m++, "]"), &model, true});
    }
    if (!scorer->components(i).has_reward_model()) continue;
    out->push_back({absl::StrCat(path, ".components[", i, "].reward_model.model"),
                    scorer->mutable_components(i)->mutable_reward_model()->mutable_model(), true});
  }
}

template <typename Message>
void KindReferences(const std::string& prefix, Message* m, std::vector<Reference>* out) {
  if (m->has_sft()) {
    out->push_back({prefix + "sft.model", m->mutable_sft()->mutable_model(), true});
    out->push_back({prefix + "sft.data", m->mutable_sft()->mutable_data(), false});
  } else if (m->has_reward_model()) {
    out->push_back({prefix + "reward_model.model", m->mutable_reward_model()->mutable_model(), true});
    out->push_back({prefix + "reward_model.data", m->mutable_reward_model()->mutable_data(), false});
    out->push_back({prefix + "reward_model.normalization_samples",
                    m->mutable_reward_model()->mutable_normalization_samples(), false});
  } else if (m->has_sample()) {
    out->push_back({prefix + "sample.model", m->mutable_sample()->mutable_model(), true});
    out->push_back({prefix + "sample.prompts", m->mutable_sample()->mutable_prompts(), false});
    ScorerReferences(prefix + "sample.scorer", m->mutable_sample()->mutable_scorer(), out);
    if (m->sample().scorer().components().empty()) m->mutable_sample()->clear_scorer();
  } else if (m->has_collect()) {
    v1::CollectSpec* collect = m->mutable_collect();
    out->push_back({prefix + "collect.samples", collect->mutable_samples(), false});
    out->push_back({prefix + "collect.against", collect->mutable_against(), false});
    out->push_back({prefix + "collect.planted", collect->mutable_planted(), false});
    out->push_back({prefix + "collect.previous", collect->mutable_previous(), false});
  } else if (m->has_ppo()) {
    v1::PpoSpec* ppo = m->mutable_ppo();
    out->push_back({prefix + "ppo.policy", ppo->mutable_policy(), true});
    out->push_back({prefix + "ppo.reference", ppo->mutable_reference(), true});
    out->push_back({prefix + "ppo.critic", ppo->mutable_critic(), true});
    out->push_back({prefix + "ppo.prompts", ppo->mutable_prompts(), false});
    if (ppo->has_ptx()) out->push_back({prefix + "ppo.ptx.data", ppo->mutable_ptx()->mutable_data(), false});
    ScorerReferences(prefix + "ppo.scorer", ppo->mutable_scorer(), out);
    if (ppo->has_gold()) ScorerReferences(prefix + "ppo.gold", ppo->mutable_gold(), out);
  } else if (m->has_evaluate()) {
    out->push_back({prefix + "evaluate.model", m->mutable_evaluate()->mutable_model(), true});
    out->push_back({prefix + "evaluate.suite", m->mutable_evaluate()->mutable_suite(), false});
    out->push_back({prefix + "evaluate.against", m->mutable_evaluate()->mutable_against(), false});
    ScorerReferences(prefix + "evaluate.graders", m->mutable_evaluate()->mutable_graders(), out);
  }
}

}  // namespace

std::string KindOf(const v1::JobSpec& spec) {
  const auto* field = v1::JobSpec::descriptor()->FindFieldByNumber(spec.kind_case());
  return field == nullptr ? "" : field->name();
}

namespace {

void CheckRetention(SpecChecker& check, const v1::JobSpec& spec) {
  const v1::RetentionSpec& retention = spec.retention();
  check.AtLeast("retention.sample_steps", retention.sample_steps(), 0);
  check.AtLeast("retention.checkpoints", retention.checkpoints(), 0);
  if (retention.checkpoints() == 1) {
    check.Problem("retention.checkpoints",
                  "expected 0 (all stay) or at least 2, found 1: a damaged checkpoint falls back to the one before");
  }
  const bool pipeline = spec.has_pipeline();
  if (retention.sample_steps() > 0 && !spec.has_ppo() && !pipeline)
    check.Problem("retention.sample_steps", "expected a ppo job or a pipeline: other kinds need all of their samples");
  if (retention.checkpoints() > 0 && !spec.has_ppo() && !spec.has_sft() && !spec.has_reward_model() && !pipeline)
    check.Problem("retention.checkpoints", "expected a job that trains or a pipeline: others have no checkpoints");
}

void CheckStartFrom(SpecChecker& check, const v1::JobSpec& spec) {
  if (!spec.has_start_from()) return;
  if (!spec.has_ppo() && !spec.has_sft() && !spec.has_reward_model())
    check.Problem("start_from", "expected a job of the kind sft, reward_model or ppo: others have no checkpoints");
  check.Required("start_from.job", spec.start_from().job(), "the job whose checkpoint it goes on from");
  check.AtLeast("start_from.step", spec.start_from().step(), 0);
}

}  // namespace

std::vector<v1::SpecProblem> TooLarge(const v1::JobSpec& spec) {
  std::vector<v1::SpecProblem> problems;
  SpecChecker check(&problems);
  // It is kept in memory, listed, and copied into stages.
  if (const size_t size = spec.ByteSizeLong(); size > kLargestSpec) {
    check.Problem("", absl::StrCat("expected at most ", kLargestSpec, " bytes in all, found ", size));
    return problems;
  }
  if (Entries(spec, kMostEntries) > kMostEntries) {
    check.Problem("", absl::StrCat("expected at most ", kMostEntries, " entries of its lists in all, found more"));
    return problems;
  }
  // Of what is checked against each other.
  check.AtMost("pipeline.stages", spec.pipeline().stages_size(), kMostStages);
  for (int i = 0; i < spec.pipeline().stages_size() && problems.empty(); ++i) {
    check.AtMost(absl::StrCat("pipeline.stages[", i, "].gate.conditions"),
                 spec.pipeline().stages(i).gate().conditions_size(), kMostConditions);
  }
  return problems;
}

std::vector<v1::SpecProblem> CompleteSpec(v1::JobSpec* spec) {
  std::vector<v1::SpecProblem> problems = TooLarge(*spec);
  if (!problems.empty()) return problems;
  SpecChecker check(&problems);
  check.Known(*spec);
  if (const absl::Status status = CheckName("name", spec->name()); !status.ok())
    check.Problem("name", std::string(status.message()));
  if (spec->project().empty()) spec->set_project("default");
  if (const absl::Status status = CheckName("project", spec->project()); !status.ok())
    check.Problem("project", std::string(status.message()));
  if (spec->labels_size() > 16)
    check.Problem("labels", absl::StrCat("expected at most 16, found ", spec->labels_size()));
  if (!spec->learners().has_ranks()) spec->mutable_learners()->set_ranks(1);
  check.Range("learners.ranks", spec->learners().ranks(), 1, 1024);
  if (!spec->learners().has_min_ranks()) spec->mutable_learners()->set_min_ranks(spec->learners().ranks());
  if (spec->learners().ranks() >= 1)
    check.Range("learners.min_ranks", spec->learners().min_ranks(), 1, spec->learners().ranks());
  if (spec->kind_case() == v1::JobSpec::KIND_NOT_SET) {
    check.Problem("", "expected one of sft, reward_model, sample, collect, ppo, evaluate, pipeline");
  } else if (spec->has_pipeline()) {
    CheckPipeline(check, spec);
  } else {
    CheckKind(check, spec);
  }
  CheckRetention(check, *spec);
  CheckStartFrom(check, *spec);
  CheckNumerics(spec, &problems);
  return problems;
}

void ReferencesOfStage(const std::string& prefix, v1::StageSpec* stage, std::vector<Reference>* out) {
  KindReferences(prefix, stage, out);
}

std::vector<Reference> ReferencesOf(v1::JobSpec* spec) {
  std::vector<Reference> all;
  if (spec->has_pipeline()) {
    for (int i = 0; i < spec->pipeline().stages_size(); ++i) {
      KindReferences(absl::StrCat("pipeline.stages[", i, "]."), spec->mutable_pipeline()->mutable_stages(i), &all);
    }
  } else {
    KindReferences("", spec, &all);
  }
  std::vector<Reference> out;
  for (Reference& reference : all) {
    if (!reference.value->empty()) out.push_back(std::move(reference));
  }
  return out;
}

std::string MainArtifact(const v1::JobSpec& spec) {
  if (spec.has_sample() || spec.has_evaluate()) return "samples";
  if (spec.has_collect()) return "comparisons";
  return "model";
}

std::string ArtifactFor(const Reference& reference, const v1::JobSpec& made_by) {
  const bool sft = absl::EndsWith(reference.field, "sft.data") || absl::EndsWith(reference.field, "ptx.data");
  return made_by.has_collect() && sft ? "edits" : MainArtifact(made_by);
}

std::string JoinProblems(const std::vector<v1::SpecProblem>& problems) {
  return absl::StrJoin(problems, "; ", [](std::string* out, const v1::SpecProblem& p) {
    if (!p.field().empty()) absl::StrAppend(out, p.field(), ": ");
    absl::StrAppend(out, p.problem());
  });
}

}  // namespace rlhf::coordinator
