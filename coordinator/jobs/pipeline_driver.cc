// pipeline: its stages one after the other, each a job of its own, in rounds, with gates between them.
#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status_util.h"
#include "coordinator/jobs/driver.h"
#include "coordinator/jobs/policy_publisher.h"
#include "coordinator/jobs/rounds.h"
#include "coordinator/jobs/spec.h"

namespace rlhf::coordinator {
namespace {

class PipelineDriver final : public Driver {
 public:
  PipelineDriver(JobHost* host, std::string job_id) : host_(host), job_id_(std::move(job_id)) {}

  void Start() override {
    v1::Job* row = job();
    row->set_total_steps(TotalStages(row->spec().pipeline()));
    if (row->round() == 0) row->set_round(1);
    WriteBatch batch;
    if (row->state() == v1::PENDING) host_->SetState(row, v1::RUNNING, "", "", &batch);
    host_->Commit(job_id_, std::move(batch));
    GoOn();
  }

  // The job table ends the stages before it ends the pipeline.
  void Stop(WriteBatch*) override {}

  void OnStageEnded(const v1::Job&) override { GoOn(); }
  void SetPaused(bool paused, WriteBatch*) override {
    if (!paused) deps().loop->Post(host_->WhileActive(job_id_, [this] { GoOn(); }));
  }

  void Describe(JobFacts* facts) override {
    const v1::Job& row = *job();
    facts->pipeline = true;
    facts->unpublished = unpublished_;
    v1::ListGatesRequest request;
    request.mutable_page()->set_page_size(1000);
    request.add_states(v1::GATE_WAITING);
    const v1::ListGatesResponse gates = deps().oversight->ListGates(request).value_or(v1::ListGatesResponse());
    for (const v1::GateRow& gate : gates.gates()) {
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
  const v1::PipelineSpec& pipeline() const { return job()->spec().pipeline(); }

  std::vector<v1::Job> Stages() const {
    std::vector<v1::Job> found;
    for (const std::string& child : job()->children()) {
      if (const v1::Job* stage = host_->Find(child); stage != nullptr) found.push_back(*stage);
    }
    return found;
  }

  // From the first stage on: the same path at the beginning, after each stage, and after a restart.
  void GoOn() {
    const std::vector<v1::Job> stages = Stages();
    for (const Place& place : PlacesUpTo(pipeline(), job()->round())) {
      const Attempt attempt{place.round, AttemptOf(*job(), stages, place.round)};
      const v1::Job* stage_job = FindStage(stages, place.stage->name(), attempt);
      if (stage_job == nullptr) return job()->state() == v1::PAUSED ? void() : Begin(*place.stage, attempt, stages);
      if (!IsTerminal(stage_job->state())) return;
      if (stage_job->state() != v1::SUCCEEDED) {
        const std::string code = stage_job->reason_code().empty() ? "STAGE_FAILED" : stage_job->reason_code();
        return host_->Fail(job_id_, code, absl::StrCat("stage ", place.stage->name(), ": ", stage_job->reason()));
      }
      Adopt(*place.stage, *stage_job, stages);
      if (place.stage->has_gate() && !PassGate(*place.stage, *stage_job, attempt, stages)) return;
    }
    v1::Job* row = job();
    if (row->round() >= Rounds(pipeline())) return host_->Succeed(job_id_, WriteBatch());
    row->set_round(row->round() + 1);
    row->set_repeat(0);
    BeginRound(absl::StrCat("round ", row->round(), " of ", Rounds(pipeline()), " begins"));
  }

  void BeginRound(const std::string& message) {
    WriteBatch batch;
    host_->AppendMessage(job(), message, &batch);
    host_->Commit(job_id_, std::move(batch), host_->WhileActive(job_id_, [this] { GoOn(); }));
  }

  // The pipeline's result has every stage's newest metrics, by its name, and with several rounds each round's; and the
  // newest artifact of each kind.
  void Adopt(const v1::StageSpec& stage, const v1::Job& stage_job, const std::vector<v1::Job>& stages) {
    v1::Job* row = job();
    for (const auto& [name, metric] : stage_job.result().metrics()) {
      (*row->mutable_result()->mutable_metrics())[absl::StrCat(stage.name(), ".", name)] = metric;
      if (Rounds(pipeline()) > 1 && stage_job.round() > 0) {
        (*row->mutable_result()
              ->mutable_metrics())[absl::StrCat("round", stage_job.round(), ".", stage.name(), ".", name)] = metric;
      }
    }
    for (const auto& [name, digest] : stage_job.result().artifacts()) {
      (*row->mutable_result()->mutable_artifacts())[absl::StrCat(stage.name(), ".", name)] = digest;
      if (name == "model") (*row->mutable_result()->mutable_artifacts())["model"] = digest;
    }
    row->set_step(std::count_if(stages.begin(), stages.end(), [&](const v1::Job& other) {
      return other.state() == v1::SUCCEEDED && other.repeat() == AttemptOf(*row, stages, other.round());
    }));
  }

  GateOpening Opening(const v1::StageSpec& stage, const v1::Job& stage_job, const Attempt& attempt,
                      const std::vector<v1::Job>& stages) const {
    GateOpening opening;
    opening.pipeline_id = job_id_;
    opening.stage = stage.name();
    opening.submitted_by = job()->submitted_by();
    opening.round = attempt.round;
    opening.repeat = attempt.repeat;
    opening.spec = stage.gate();
    for (v1::GateCondition& condition : *opening.spec.mutable_conditions()) DeclareSlices(stage, &condition);
    if (stage.has_evaluate() && stage.evaluate().has_max_disparity_rise()) {
      // The bound on disparity is a condition of the gate like any other.
      v1::GateCondition& disparity = *opening.spec.add_conditions();
      disparity.set_metric("disparity_rise");
      disparity.set_max(stage.evaluate().max_disparity_rise());
    }
    for (const auto& [name, metric] : stage_job.result().metrics()) opening.metrics[name] = metric;
    for (const v1::StageSpec& other : pipeline().stages()) {
      const v1::Job* earlier = FindStage(stages, other.name(), attempt);
      if (earlier == nullptr) earlier = FindStage(stages, other.name(), Attempt{0, 0});
      if (earlier == nullptr || earlier->state() != v1::SUCCEEDED) continue;
      for (const auto& [name, metric] : earlier->result().metrics())
        opening.metrics[absl::StrCat(other.name(), ".", name)] = metric;
      for (const auto& [name, digest] : earlier->result().artifacts())
        opening.artifacts[absl::StrCat(other.name(), ".", name)] = digest;
    }
    if (!stage.gate().approves().empty()) {
      const auto policy = opening.artifacts.find(absl::StrCat(stage.gate().approves(), ".model"));
      if (policy != opening.artifacts.end()) opening.policy = policy->second;
    }
    return opening;
  }

  // The worst slice is looked for among those that the evaluation declares, if it declares any.
  void DeclareSlices(const v1::StageSpec& own, v1::GateCondition* condition) const {
    const std::optional<WorstOf> worst = ParseWorst(condition->metric());
    if (!worst || !worst->tags.empty()) return;
    const v1::StageSpec* stage = &own;
    for (const v1::StageSpec& other : pipeline().stages()) {
      if (other.name() == condition->stage()) stage = &other;
    }
    if (!stage->evaluate().slices().empty())
      condition->set_metric(
          absl::StrCat("worst.", worst->metric, "{", absl::StrJoin(stage->evaluate().slices(), ","), "}"));
  }

  bool PassGate(const v1::StageSpec& stage, const v1::Job& stage_job, const Attempt& attempt,
                const std::vector<v1::Job>& stages) {
    v1::Job* row = job();
    WriteBatch batch;
    const v1::GateRow gate = deps().oversight->OpenGate(Opening(stage, stage_job, attempt, stages), &batch,
                                                        host_->WhileActive(job_id_, [this](const v1::GateRow&) {
                                                          WriteBatch decided;
                                                          if (job()->state() == v1::WAITING)
                                                            host_->SetState(job(), v1::RUNNING, "", "", &decided);
                                                          host_->Commit(job_id_, std::move(decided));
                                                          GoOn();
                                                        }));
    switch (gate.state()) {
      case v1::GATE_APPROVED:
        host_->Commit(job_id_, std::move(batch));
        return gate.policy().empty() || Approve(gate);
      case v1::GATE_WAITING:
        if (row->state() != v1::WAITING && row->state() != v1::PAUSED) {
          host_->SetState(
              row, v1::WAITING,
              absl::StrCat("gate ", gate.id(), ": ", gate.approvals_size(), " of ", stage.gate().required_approvals(),
                           " approvals; an overseer decides: `rlhfctl gate approve ", gate.id(), "`"),
              "", &batch);
        }
        host_->Commit(job_id_, std::move(batch));
        return false;
      default:
        break;
    }
    const std::string why = absl::StrCat("gate after stage ", stage.name(), ": ", WhyClosed(gate));
    host_->Commit(job_id_, std::move(batch));
    const int most = stage.gate().max_repeats();
    if (stage.gate().on_closed() == v1::GATE_REPEATS_ROUND && attempt.round > 0 && attempt.repeat < most) {
      row->set_repeat(attempt.repeat + 1);
      BeginRound(absl::StrCat(why, "; round ", attempt.round, " is repeated, for the ", attempt.repeat + 1, ". of ",
                              most, " times"));
      return false;
    }
    host_->Fail(job_id_, "GATE_CLOSED", why);
    return false;
  }

  // True when all of the approval is done already; else it goes on by itself and comes back through GoOn.
  bool Approve(const v1::GateRow& gate) {
    v1::Job* row = job();
    if (IsPublished(*row, gate)) return true;
    if (!publishing_.insert(gate.id()).second) return false;
    row->set_approved_policy(gate.policy());
    PublishPolicy(host_, job_id_, gate,
                  host_->WhileActive(job_id_, [this, gate_id = gate.id()](const absl::Status& status) {
                    if (!status.ok()) {
                      publishing_.erase(gate_id);
                      return FailOrTryVolumeAgain(host_, job_id_, status, &unpublished_, [this] { GoOn(); });
                    }
                    unpublished_.clear();
                    GoOn();
                  }));
    return false;
  }

  static std::string WhyClosed(const v1::GateRow& gate) {
    for (const v1::ConditionResult& result : gate.results()) {
      if (result.holds()) continue;
      if (!result.problem().empty()) return result.problem();
      const v1::GateCondition& c = result.condition();
      const bool interval = c.by_interval();
      return absl::StrFormat(
          "%s is %.4g%s; expected %s%s%s", c.metric(), result.found().value(),
          interval ? absl::StrFormat(" [%.4g, %.4g]", result.found().low(), result.found().high()) : "",
          c.has_min() ? absl::StrFormat("at least %.4g", c.min()) : "", c.has_min() && c.has_max() ? " and " : "",
          c.has_max() ? absl::StrFormat("at most %.4g", c.max()) : "");
    }
    for (const v1::Approval& approval : gate.approvals()) {
      if (!approval.approved())
        return absl::StrCat("rejected by ", approval.subject(), approval.comment().empty() ? "" : ": ",
                            approval.comment());
    }
    return "rejected";
  }

  void Begin(const v1::StageSpec& stage, const Attempt& attempt, const std::vector<v1::Job>& stages) {
    v1::Job* row = job();
    v1::JobSpec spec = SpecOfStage(row->spec(), stage, attempt.round, attempt.repeat);
    if (spec.has_collect() && spec.collect().previous().empty() && !spec.collect().fresh()) {
      // Comparisons accumulate, also those of a round that was repeated: people's judgements are as good as before.
      if (const v1::Job* before = PreviousAttempt(stages, stage.name(), attempt); before != nullptr)
        spec.mutable_collect()->set_previous(before->result().artifacts().at("comparisons"));
    }
    std::map<std::string, std::string> resolved;
    for (const Reference& reference : ReferencesOf(&spec)) {
      const absl::StatusOr<std::string> digest = Digest(reference, attempt, stages);
      if (!digest.ok()) return host_->Fail(job_id_, "STAGE_FAILED", std::string(digest.status().message()));
      if (absl::StartsWith(*reference.value, "stage:") || absl::StartsWith(*reference.value, "approved:"))
        *reference.value = *digest;
      resolved[*reference.value] = *digest;
    }
    WriteBatch batch;
    host_->AddStage(row, stage, std::move(spec), std::move(resolved), attempt.round, attempt.repeat, &batch);
    host_->AppendMessage(row,
                         Rounds(pipeline()) > 1 && attempt.round > 0
                             ? absl::StrCat("stage ", stage.name(), " of round ", attempt.round, " begins")
                             : absl::StrCat("stage ", stage.name(), " begins"),
                         &batch);
    host_->Commit(job_id_, std::move(batch));
  }

  absl::StatusOr<std::string> Digest(const Reference& reference, const Attempt& attempt,
                                     const std::vector<v1::Job>& stages) const {
    const bool approved = absl::StartsWith(*reference.value, "approved:");
    if (!approved && !absl::StartsWith(*reference.value, "stage:")) {
      const std::string known = Resolved(*job(), *reference.value);
      return known.empty() ? *reference.value : known;  // a digest that this driver put there
    }
    if (approved && !job()->approved_policy().empty()) return job()->approved_policy();
    const std::string name = reference.value->substr(reference.value->find(':') + 1);
    const v1::Job* made_by = FindStage(stages, name, attempt);
    if (made_by == nullptr) made_by = FindStage(stages, name, Attempt{0, 0});
    if (made_by == nullptr)
      return absl::NotFoundError(absl::StrCat(reference.field, ": stage ", name, " was not run in this round"));
    const std::string wanted = ArtifactFor(reference, made_by->spec());
    const auto digest = made_by->result().artifacts().find(wanted);
    if (digest == made_by->result().artifacts().end())
      return absl::NotFoundError(absl::StrCat(reference.field, ": stage ", name, " made no ", wanted));
    return digest->second;
  }

  JobHost* const host_;
  const std::string job_id_;
  std::set<std::string> publishing_;  // gates whose policy is being published
  std::string unpublished_;           // why the policy of one is not yet
};

}  // namespace

std::unique_ptr<Driver> MakePipelineDriver(JobHost* host, const std::string& job_id) {
  return std::make_unique<PipelineDriver>(host, job_id);
}

}  // namespace rlhf::coordinator
