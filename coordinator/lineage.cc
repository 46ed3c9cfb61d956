#include "coordinator/lineage.h"

#include <algorithm>
#include <deque>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "artifact/digest.h"
#include "common/canonical_bytes.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

std::string KindOfJob(const v1::JobSpec& spec) {
  const auto* field = v1::JobSpec::descriptor()->FindFieldByNumber(spec.kind_case());
  return field == nullptr ? "" : field->name();
}

bool Makes(const v1::Job& job, const std::string& digest) {
  if (job.spec().has_pipeline()) return false;  // its stages do
  return std::any_of(job.result().artifacts().begin(), job.result().artifacts().end(),
                     [&](const auto& made) { return made.second == digest; });
}

std::string Approvals(const v1::GateRow& gate) {
  std::string text;
  for (const v1::Approval& approval : gate.approvals()) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", approval.subject(),
                    approval.approved() ? " approved" : " rejected");
  }
  return text;
}

class Walk {
 public:
  explicit Walk(const LineageRows& rows) : rows_(rows) {}

  v1::Lineage From(const std::string& model) {
    lineage_.set_model(model);
    Visit(model);
    while (!queue_.empty()) {
      const std::string id = queue_.front();
      queue_.pop_front();
      Expand(id);
    }
    return std::move(lineage_);
  }

 private:
  void Visit(const std::string& id) {
    if (!id.empty() && seen_.insert(id).second) queue_.push_back(id);
  }

  void Expand(const std::string& id) {
    const auto job = std::find_if(rows_.jobs.begin(), rows_.jobs.end(), [&](const v1::Job& j) { return j.id() == id; });
    if (job != rows_.jobs.end()) return ExpandJob(*job);
    ExpandArtifact(id);
  }

  void ExpandJob(const v1::Job& job) {
    v1::LineageStep& step = *lineage_.add_steps();
    step.set_kind("job");
    step.set_id(job.id());
    step.set_name(job.stage().empty() ? job.spec().name() : absl::StrCat(job.spec().name(), " (", job.stage(), ")"));
    step.set_by(job.submitted_by());
    *step.mutable_at() = job.finished_at();
    auto& details = *step.mutable_details();
    details["kind"] = KindOfJob(job.spec());
    details["configuration_sha256"] = MessageSha256(job.spec());
    details["state"] = v1::JobState_Name(job.state());
    details["seed"] = absl::StrCat(job.spec().seed());
    if (job.round() > 0) details["round"] = absl::StrCat(job.round());
    if (!job.parent_id().empty()) details["pipeline"] = job.parent_id();
    for (const auto& [name, metric] : job.result().metrics())
      details[absl::StrCat("metric ", name)] = absl::StrFormat("%.6g", metric.value());
    std::set<std::string> inputs;
    for (const auto& [reference, digest] : job.resolved()) inputs.insert(digest);
    if (job.has_start()) inputs.insert(job.start().checkpoint());
    for (const std::string& digest : inputs) {
      step.add_made_from(digest);
      Visit(digest);
    }
    for (const v1::GateRow& gate : rows_.gates) {
      if (gate.job_id() == job.parent_id() && gate.stage() == job.stage() && gate.round() == job.round() &&
          gate.repeat() == job.repeat())
        AddGate(gate, job.id());
    }
  }

  void ExpandArtifact(const std::string& digest) {
    v1::LineageStep& step = *lineage_.add_steps();
    step.set_id(digest);
    step.set_kind("data");
    for (const v1::Artifact& artifact : rows_.artifacts) {
      if (artifact.digest() != digest) continue;
      step.set_kind(artifact.kind());
      step.set_by(artifact.created_by());
      *step.mutable_at() = artifact.created_at();
      step.mutable_details()->insert({"bytes", absl::StrCat(artifact.total_size())});
      if (artifact.aliases_size() > 0) step.set_name(artifact.aliases(0));
    }
    for (const v1::ComparisonSet& set : rows_.sets) {
      if (set.digest() != digest) continue;
      auto& details = *step.mutable_details();
      step.set_kind("comparisons");
      step.set_name(absl::StrCat(set.project(), "/", set.name(), " version ", set.version()));
      details["content_sha256"] = set.content_sha256();
      details["comparisons"] = absl::StrCat(set.comparisons());
      details["raters"] = absl::StrCat(set.raters_size());
      details["excluded_raters"] = absl::StrCat(set.excluded_raters_size());
      if (set.forgotten()) details["forgotten"] = "a rater of it was forgotten since";
      if (!set.previous().empty()) {
        step.add_made_from(set.previous());
        Visit(set.previous());
      }
    }
    // The first job that made it: a rerun with the same bytes adds nothing to where it comes from.
    for (const v1::Job& job : rows_.jobs) {
      if (!Makes(job, digest)) continue;
      step.add_made_from(job.id());
      Visit(job.id());
      break;
    }
    for (const v1::GateRow& gate : rows_.gates) {
      if (gate.policy() == digest) AddGate(gate, digest);
    }
  }

  void AddGate(const v1::GateRow& gate, const std::string& about) {
    if (!seen_.insert(gate.id()).second) return;
    v1::LineageStep& step = *lineage_.add_steps();
    step.set_kind("gate");
    step.set_id(gate.id());
    step.set_name(gate.stage());
    step.add_made_from(about);
    *step.mutable_at() = gate.opened_at();
    step.set_by(Approvals(gate));
    auto& details = *step.mutable_details();
    details["state"] = v1::GateState_Name(gate.state());
    details["report_sha256"] = gate.report_sha256();
    details["required_approvals"] = absl::StrCat(gate.spec().required_approvals());
    for (const v1::ConditionResult& result : gate.results()) {
      details[absl::StrCat("condition ", result.condition().metric())] =
          absl::StrCat(absl::StrFormat("%.6g", result.found().value()), result.holds() ? " holds" : " does not hold");
    }
  }

  const LineageRows& rows_;
  v1::Lineage lineage_;
  std::set<std::string> seen_;
  std::deque<std::string> queue_;
};

}  // namespace

std::string MessageSha256(const google::protobuf::Message& message) {
  return artifact::Sha256Hex(CanonicalBytes(message));
}

std::vector<v1::Job> AllJobs(Jobs& jobs) {
  std::vector<v1::Job> all;
  jobs.Visit(0, [&all](const v1::Job& job) { all.push_back(job); });
  return all;
}

std::vector<DerivedModel> ModelsMadeFrom(const std::vector<v1::Job>& jobs, std::set<std::string> digests) {
  std::vector<DerivedModel> models;
  std::set<std::string> used;
  // Whatever a tainted job made is tainted too, until nothing new is.
  for (bool grown = true; grown;) {
    grown = false;
    for (const v1::Job& job : jobs) {
      if (job.spec().has_pipeline() || used.count(job.id()) > 0) continue;
      const bool uses = std::any_of(job.resolved().begin(), job.resolved().end(),
                                    [&](const auto& input) { return digests.count(input.second) > 0; });
      if (!uses && used.count(job.start().job_id()) == 0) continue;
      used.insert(job.id());
      grown = true;
      for (const auto& [name, digest] : job.result().artifacts()) {
        digests.insert(digest);
        if (name == "model") models.push_back({digest, job.id()});
      }
    }
  }
  return models;
}

absl::StatusOr<LineageRows> CollectLineageRows(const std::string& project, Jobs& jobs, Feedback& feedback,
                                               Oversight& oversight, Artifacts& artifacts) {
  LineageRows rows;
  jobs.Visit(0, [&](const v1::Job& job) {
    if (job.spec().project() == project) rows.jobs.push_back(job);
  });
  rows.sets = feedback.sets().List(project, "");
  v1::ListGatesRequest gates;
  gates.mutable_page()->set_page_size(1000);
  do {
    RLHF_ASSIGN_OR_RETURN(v1::ListGatesResponse page, oversight.ListGates(gates));
    for (v1::GateRow& gate : *page.mutable_gates()) rows.gates.push_back(std::move(gate));
    gates.mutable_page()->set_page_token(page.next_page_token());
  } while (!gates.page().page_token().empty());
  v1::ListArtifactsRequest list;
  list.set_project(project);
  list.mutable_page()->set_page_size(1000);
  do {
    RLHF_ASSIGN_OR_RETURN(v1::ListArtifactsResponse page, artifacts.List(list));
    for (v1::Artifact& artifact : *page.mutable_artifacts()) rows.artifacts.push_back(std::move(artifact));
    list.mutable_page()->set_page_token(page.next_page_token());
  } while (!list.page().page_token().empty());
  return rows;
}

absl::StatusOr<v1::Lineage> LineageOf(const std::string& model, const LineageRows& rows) {
  const bool known =
      std::any_of(rows.artifacts.begin(), rows.artifacts.end(), [&](const auto& a) { return a.digest() == model; }) ||
      std::any_of(rows.jobs.begin(), rows.jobs.end(), [&](const auto& job) { return Makes(job, model); });
  if (!known) {
    return absl::NotFoundError(
        absl::StrCat("nothing is known of the model ", model, "; `rlhfctl models list` names those there are"));
  }
  return Walk(rows).From(model);
}

std::function<bool(const v1::AuditRecord&)> AboutSteps(const v1::Lineage& lineage) {
  std::set<std::string> ids;
  for (const v1::LineageStep& step : lineage.steps()) ids.insert(step.id());
  return [ids = std::move(ids)](const v1::AuditRecord& record) {
    return ids.count(record.object()) > 0 ||
           std::any_of(record.details().begin(), record.details().end(),
                       [&](const auto& detail) { return ids.count(detail.second) > 0; });
  };
}

}  // namespace rlhf::coordinator
