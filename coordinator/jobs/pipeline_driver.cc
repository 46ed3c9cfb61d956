// pipeline: its stages one after the other, each a job of its own, with gates between them.
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_util.h"
#include "coordinator/jobs/driver.h"
#include "coordinator/jobs/spec.h"

namespace rlhf::coordinator {
namespace {

class PipelineDriver final : public Driver {
 public:
  PipelineDriver(JobHost* host, std::string job_id) : host_(host), job_id_(std::move(job_id)) {}

  void Start() override {
    v1::Job* row = job();
    row->set_total_steps(row->spec().pipeline().stages_size());
    WriteBatch batch;
    if (row->state() == v1::PENDING) host_->SetState(row, v1::RUNNING, "", "", &batch);
    host_->Commit(job_id_, std::move(batch));
    GoOn();
  }

  // The job table ends the stages before it ends the pipeline.
  void Stop(WriteBatch*) override {}

  void OnStageEnded(const v1::Job&) override { GoOn(); }
  void SetPaused(bool paused, WriteBatch*) override {
    if (!paused)
      deps().loop->Post([host = host_, job_id = job_id_, this] {
        const v1::Job* current = host->Find(job_id);
        if (current != nullptr && !IsTerminalState(current->state())) GoOn();
      });
  }

  void Describe(JobFacts* facts) override {
    const v1::Job& row = *job();
    facts->pipeline = true;
    v1::ListGatesRequest request;
    request.mutable_page()->set_page_size(1000);
    request.add_states(v1::GATE_WAITING);
    const absl::StatusOr<v1::ListGatesResponse> gates = deps().oversight->ListGates(request);
    for (const v1::GateRow& gate : gates.ok() ? gates->gates() : v1::ListGatesResponse().gates()) {
      if (gate.job_id() != job_id_) continue;
      facts->gate_id = gate.id();
      facts->approvals = gate.approvals_size();
      facts->required_approvals = gate.spec().required_approvals();
      for (const v1::Approval& approval : gate.approvals()) facts->approved_by.push_back(approval.subject());
    }
    if (!row.children().empty()) facts->stage_id = row.children().rbegin()[0];
  }

 private:
  v1::Job* job() const { return host_->Find(job_id_); }
  const JobsDeps& deps() const { return host_->deps(); }

  v1::Job* StageJob(const std::string& stage) const {
    for (const std::string& child : job()->children()) {
      v1::Job* found = host_->Find(child);
      if (found != nullptr && found->stage() == stage) return found;
    }
    return nullptr;
  }

  // From the first stage on: the same path at the beginning, after each stage, and after a restart.
  void GoOn() {
    for (const v1::StageSpec& stage : job()->spec().pipeline().stages()) {
      const v1::Job* stage_job = StageJob(stage.name());
      if (stage_job == nullptr) return job()->state() == v1::PAUSED ? void() : Begin(stage);
      if (!IsTerminalState(stage_job->state())) return;
      if (stage_job->state() != v1::SUCCEEDED) {
        const std::string code = stage_job->reason_code().empty() ? "STAGE_FAILED" : stage_job->reason_code();
        return host_->Fail(job_id_, code, absl::StrCat("stage ", stage.name(), ": ", stage_job->reason()));
      }
      Adopt(stage, *stage_job);
      if (stage.has_gate() && !PassGate(stage, *stage_job)) return;
    }
    host_->Succeed(job_id_, WriteBatch());
  }

  // The pipeline's result has every stage's metrics, by its name, and the newest artifact of each kind.
  void Adopt(const v1::StageSpec& stage, const v1::Job& stage_job) {
    v1::Job* row = job();
    for (const auto& [name, metric] : stage_job.result().metrics())
      (*row->mutable_result()->mutable_metrics())[absl::StrCat(stage.name(), ".", name)] = metric;
    for (const auto& [name, digest] : stage_job.result().artifacts()) {
      (*row->mutable_result()->mutable_artifacts())[absl::StrCat(stage.name(), ".", name)] = digest;
      if (name == "model") (*row->mutable_result()->mutable_artifacts())["model"] = digest;
    }
    int64_t done = 0;
    for (const v1::StageSpec& s : row->spec().pipeline().stages()) {
      const v1::Job* other = StageJob(s.name());
      done += other != nullptr && other->state() == v1::SUCCEEDED ? 1 : 0;
    }
    row->set_step(done);
  }

  bool PassGate(const v1::StageSpec& stage, const v1::Job& stage_job) {
    v1::Job* row = job();
    WriteBatch batch;
    const std::map<std::string, v1::Metric> metrics(stage_job.result().metrics().begin(),
                                                    stage_job.result().metrics().end());
    const v1::GateRow gate =
        deps().oversight->OpenGate(job_id_, stage.name(), row->submitted_by(), stage.gate(), metrics, &batch,
                                   [host = host_, job_id = job_id_, this](const v1::GateRow&) {
                                     v1::Job* current = host->Find(job_id);
                                     if (current == nullptr || IsTerminalState(current->state())) return;
                                     WriteBatch decided;
                                     if (current->state() == v1::WAITING)
                                       host->SetState(current, v1::RUNNING, "", "", &decided);
                                     host->Commit(job_id, std::move(decided));
                                     GoOn();
                                   });
    switch (gate.state()) {
      case v1::GATE_APPROVED:
        host_->Commit(job_id_, std::move(batch));
        return true;
      case v1::GATE_WAITING:
        if (row->state() != v1::WAITING) {
          host_->SetState(row, v1::WAITING,
                          absl::StrCat("gate after stage ", stage.name(), ": ", gate.approvals_size(), " of ",
                                       stage.gate().required_approvals(), " approvals"),
                          "", &batch);
        }
        host_->Commit(job_id_, std::move(batch));
        return false;
      default:
        host_->Commit(job_id_, std::move(batch));
        host_->Fail(job_id_, "GATE_CLOSED", absl::StrCat("gate after stage ", stage.name(), ": ", WhyClosed(gate)));
        return false;
    }
  }

  static std::string WhyClosed(const v1::GateRow& gate) {
    for (const v1::ConditionResult& result : gate.results()) {
      if (result.holds()) continue;
      if (!result.problem().empty()) return result.problem();
      const v1::GateCondition& c = result.condition();
      return absl::StrFormat("%s is %.4g; expected %s%s%s", c.metric(), result.found().value(),
                             c.has_min() ? absl::StrFormat("at least %.4g", c.min()) : "",
                             c.has_min() && c.has_max() ? " and " : "",
                             c.has_max() ? absl::StrFormat("at most %.4g", c.max()) : "");
    }
    for (const v1::Approval& approval : gate.approvals()) {
      if (!approval.approved())
        return absl::StrCat("rejected by ", approval.subject(), approval.comment().empty() ? "" : ": ",
                            approval.comment());
    }
    return "rejected";
  }

  void Begin(const v1::StageSpec& stage) {
    v1::Job* row = job();
    v1::JobSpec spec = SpecOfStage(row->spec(), stage);
    std::map<std::string, std::string> resolved;
    for (const Reference& reference : ReferencesOf(&spec)) {
      if (absl::StartsWith(*reference.value, "stage:")) {
        const v1::Job* made_by = StageJob(reference.value->substr(6));
        const auto digest = made_by->result().artifacts().find(MainArtifact(made_by->spec()));
        if (digest == made_by->result().artifacts().end()) {
          return host_->Fail(
              job_id_, "STAGE_FAILED",
              absl::StrCat(reference.field, ": stage ", made_by->stage(), " made no ", MainArtifact(made_by->spec())));
        }
        *reference.value = digest->second;
        resolved[digest->second] = digest->second;
      } else {
        resolved[*reference.value] = Resolved(*row, *reference.value);
      }
    }
    WriteBatch batch;
    host_->AddStage(row, stage, std::move(spec), std::move(resolved), &batch);
    host_->AppendMessage(row, absl::StrCat("stage ", stage.name(), " begins"), &batch);
    host_->Commit(job_id_, std::move(batch));
  }

  JobHost* const host_;
  const std::string job_id_;
};

}  // namespace

std::unique_ptr<Driver> MakePipelineDriver(JobHost* host, const std::string& job_id) {
  return std::make_unique<PipelineDriver>(host, job_id);
}

}  // namespace rlhf::coordinator
