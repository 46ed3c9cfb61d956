// PPO: samples are issued ahead of the committed step by the lag bound, a step's batch is exactly what was issued for
// it, and a committed step is one transaction.
#include <algorithm>
#include <list>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/failpoint.h"
#include "common/log.h"
#include "common/status_util.h"
#include "coordinator/jobs/committed_steps.h"
#include "coordinator/jobs/cut_answers.h"
#include "coordinator/jobs/model_tokens.h"
#include "coordinator/jobs/step_issuer.h"
#include "coordinator/jobs/step_watch.h"
#include "coordinator/jobs/training_driver.h"

namespace rlhf::coordinator {
namespace {

constexpr int kRefusalsInARow = 3;

class PpoDriver final : public TrainingDriver, public SamplingListener {
 public:
  using TrainingDriver::TrainingDriver;

  void Start() override {
    if (FinishedBefore()) return;
    if (const absl::Status read = steps_.Restore(deps().store); !read.ok())
      return host_->Fail(job_id_, "STORE", std::string(read.message()));
    replay_through_ = steps_.newest() > job()->version().step() ? steps_.newest() : 0;
    watch_ = std::make_unique<StepWatch>(host_, job_id_, spec().monitor());
    const v1::Job& row = *job();
    LoadPrompts(deps(), Resolved(row, row.spec().ppo().prompts()), true, row.spec().seed(), 0,
                host_->WhileActive(job_id_, [this](auto prompts) {
                  if (!prompts.ok()) return host_->Fail(job_id_, "BAD_DATA", std::string(prompts.status().message()));
                  CheckModelTokens(host_, job_id_,
                                   [this, prompts = *std::move(prompts)]() mutable { Begin(std::move(prompts)); });
                }));
  }

  void Stop(WriteBatch* batch) override {
    deps().sampling->CancelOpen(job_id_, batch);
    deps().sampling->RemoveJob(job_id_);
    TrainingDriver::Stop(batch);
    FailWaiters(absl::AbortedError("the job has ended"));
  }

  bool leaves_when_paused() const override { return false; }
  void SetPaused(bool paused, WriteBatch* batch) override {
    paused_ = paused;
    if (!paused) RunsIfGrouped(batch);
    UpdateSampling();
    if (!paused) ServeBatch();
  }

  void NextBatch(const v1::NextBatchRequest& request, Done<Batch> done) override {
    if (request.step() != NextStep()) return done(OutOfOrder(request.step()));
    if (request.step() > job()->total_steps())
      return done(absl::OutOfRangeError(absl::StrCat("the job ends at step ", job()->total_steps())));
    waiters_.push_back({request, std::move(done)});
    ServeBatch();
  }

  void CommitStep(const v1::CommitStepRequest& request, Done<v1::CommitStepResponse> done) override;
  void RefuseStep(const v1::RefuseStepRequest& request, Done<v1::RefuseStepResponse> done) override;

  void FinishTraining(const v1::FinishTrainingRequest& request, Done<v1::FinishTrainingResponse> done) override {
    if (const absl::Status read = RecallMetrics(); !read.ok()) return done(read);
    TellResult();
    TrainingDriver::FinishTraining(request, std::move(done));
  }

  void OnStepScored(const std::string&, int64_t step) override {
    if (step == NextStep()) ServeBatch();
  }
  void OnSampleFailed(const std::string&, const v1::SampleRow& row) override {
    // Else it waits for the rest of its step: see OnStepEndedShort.
    if (spec().on_failed() == v1::FAILED_SAMPLE_REPLACES_PROMPT) return;
    host_->Fail(
        job_id_, "SAMPLE_FAILED",
        absl::StrCat("sample ", row.id().step(), "/", row.id().ordinal(), "/", row.id().index(), ": ", row.reason()));
  }
  void OnStepEndedShort(const std::string&, int64_t step) override;

  void Describe(JobFacts* facts) override {
    facts->starting = !begun_;
    if (!begun_) return;
    TrainingDriver::Describe(facts);
    DescribeSamples(deps(), job_id_, &facts->samples);
    facts->samples.batch_wanted = between_steps();
    facts->samples.weights_away = job()->version().step() > 0 && weights_address_.empty();
    facts->no_progress = std::min(facts->no_progress, facts->samples.since);
  }

 protected:
  v1::GroupAssignment OnGroupForming(const std::string& job_id, uint64_t epoch, int ranks,
                                     const v1::PolicyVersion* held, const std::string& rank0_address) override;
  const v1::PolicyVersion* Committed(const std::string&) override {
    return job() == nullptr ? nullptr : &job()->version();
  }
  bool LosesSteps(const std::string&) const override {
    return job() != nullptr && job()->version().step() > job()->checkpoint_step();
  }
  void OnGroupLost(const std::string& job_id, const std::string& why) override {
    FailWaiters(WithReason(absl::AbortedError("the learner group changed: join again"), v1::STALE_EPOCH));
    if (job() != nullptr) TrainingDriver::OnGroupLost(job_id, why);
  }
  void Yield() override {
    if (yields_to_.empty()) return;
    FailWaiters(
        WithReason(absl::AbortedError("a job of higher priority takes the learners: join again"), v1::STALE_EPOCH));
    weights_address_.clear();  // who served them serves another job now
    DropBatch();
    TrainingDriver::Yield();
    UpdateSampling();
  }
  bool between_steps() const override { return grouped_ && !waiters_.empty(); }
  void Tick() override {
    TrainingDriver::Tick();
    if (!held_by_halt_ || deps().oversight->halted()) return;
    held_by_halt_ = false;
    ServeBatch();
  }

 private:
  struct Waiter {
    v1::NextBatchRequest request;
    Done<Batch> done;
  };

  const v1::PpoSpec& spec() const { return job()->spec().ppo(); }
  // The only one that is served, committed or refused.
  int64_t NextStep() const { return job()->version().step() + 1; }
  absl::Status OutOfOrder(int64_t found) const {
    return WithReason(absl::AbortedError(absl::StrCat("expected step ", NextStep(), ", found ", found, ": join again")),
                      v1::STEP_OUT_OF_ORDER);
  }
  // CommitStep, once the monitor has seen the step's batch.
  void CommitSeen(const v1::CommitStepRequest& request, Done<v1::CommitStepResponse> done);
  // The newest step now; what a replay that ended otherwise makes void is removed.
  void RecordStep(const v1::CommitStepRequest& request, WriteBatch* batch);
  void TellCut(const v1::MetricPoint& point, WriteBatch* batch);
  // What the result says is of the last step.
  void RememberMetrics(const v1::MetricPoint& point);
  void TellResult() {
    for (const auto& [name, value] : last_metrics_)
      (*job()->mutable_result()->mutable_metrics())[name].set_value(value);
  }
  // After a restart that was committed by another process: from the job's events, few of which are newer.
  absl::Status RecallMetrics();

  void Begin(std::shared_ptr<const std::vector<v1::Prompt>> prompts) {
    prompts_ = prompts;
    v1::Job& row = *job();
    SamplingPlan plan = PlanOf(row);
    plan.prompts = std::move(prompts);
    plan.samples_per_prompt = spec().samples_per_prompt();
    plan.sampling = spec().sampling();
    plan.policy = Policy();
    plan.score = true;
    plan.scorer = ResolvedScorer(row, spec().scorer());
    plan.gold = ResolvedScorer(row, spec().gold());
    // Also with β = 0: the KL is what people watch.
    // With adapters the learner computes it itself, from the base that it holds anyway.
    if (!spec().has_lora()) plan.reference_policy = Resolved(row, spec().reference());
    plan.max_policy_lag = spec().max_policy_lag();
    plan.max_attempts = spec().max_attempts();
    if (const absl::Status status = deps().sampling->AddJob(std::move(plan), this); !status.ok()) {
      return host_->Fail(job_id_, "BAD_DATA", std::string(status.message()));
    }
    if (row.total_steps() == 0) row.set_total_steps(spec().steps());  // an early stop lowered it for good
    paused_ = row.state() == v1::PAUSED;
    issuer_.Resume();
    begun_ = true;
    WriteBatch batch;
    issuer_.IssueSlice(&batch);
    UpdateSampling();
    host_->Commit(job_id_, std::move(batch), host_->WhileActive(job_id_, [this] { IssueRest(); }));
    TrainingDriver::Start();
  }

  v1::PolicySource Policy() const {
    v1::PolicySource policy;
    policy.set_job_id(job_id_);
    policy.set_artifact(Resolved(*job(), spec().policy()));
    *policy.mutable_version() = job()->version();
    policy.set_deterministic(job()->spec().deterministic());
    if (spec().has_lora()) *policy.mutable_lora() = spec().lora();
    if (!weights_address_.empty() && job()->version().step() > 0) policy.add_addresses(weights_address_);
    return policy;
  }

  // No step comes after this one.
  void EndAt(int64_t step, const std::string& why, WriteBatch* batch) {
    job()->set_total_steps(step);
    deps().sampling->CancelOpen(job_id_, batch);
    host_->AppendMessage(job(), why, batch);
  }
  // Whether the group forms anew after this step, for a rank that waits; after the last one it would be for nothing.
  bool TakesIn(const v1::CommitStepRequest& request) {
    return !request.stop() && request.step() < job()->total_steps() && yields_to_.empty() &&
           deps().groups->TakeIn(job_id_);
  }
  void IssueRest() {
    issuer_.IssueRest([this] { ServeBatch(); });
  }

  // Nothing is leased while the committed version is nowhere to be had, or is behind what was committed before (its
  // samples exist already).
  void UpdateSampling() {
    const int64_t step = job()->version().step();
    const bool replaying = step < replay_through_;
    const bool unserved = step > 0 && weights_address_.empty();
    deps().sampling->SetPaused(job_id_, paused_ || replaying || unserved);
  }

  // Whoever waits, for a batch or for the end of a step, is of a group that is no more.
  void FailWaiters(const absl::Status& status) {
    std::list<Waiter> waiters = std::exchange(waiters_, {});
    for (Waiter& waiter : waiters) waiter.done(status);
    if (watch_ != nullptr) watch_->FailWaiting(status);
  }

  // A rank that asks has lost its call or its group, and goes on by the answer.
  void RefuseWaitingCommits() override {
    if (watch_ == nullptr) return;
    watch_->FailWaiting(WithReason(
        absl::AbortedError("the group asked what is committed before this commit began: join again"), v1::STALE_EPOCH));
  }

  // The batch is not the newest any more; thousands of samples are freed elsewhere.
  void DropBatch() {
    watch_->Drop(WithReason(absl::AbortedError("the step's batch was given back: join again"), v1::STALE_EPOCH));
    if (batch_ != nullptr) deps().batches->Run([batch = std::exchange(batch_, nullptr)] {});
  }

  void ServeBatch() {
    const int64_t step = NextStep();
    if (paused_ || waiters_.empty() || assigning_) return;
    if (batch_ != nullptr && batch_step_ == step) {
      for (Waiter& waiter : std::exchange(waiters_, {})) waiter.done(batch_);
      return;
    }
    // A step that has begun is trained to its end, and its commit waits; no other one begins.
    if (deps().oversight->halted()) {
      held_by_halt_ = true;
      return;
    }
    if (step > job()->issued_through_step() || !deps().sampling->StepScored(job_id_, step)) return;
    WriteBatch writes;
    absl::StatusOr<std::vector<v1::Sample>> samples =
        deps().sampling->AssignStep(job_id_, step, /*replay=*/step <= replay_through_, &writes);
    if (!samples.ok() && !absl::IsFailedPrecondition(samples.status())) {
      host_->Commit(job_id_, std::move(writes));
      return host_->Fail(job_id_, absl::IsDataLoss(samples.status()) ? "SAMPLE_DAMAGED" : "STORE",
                         std::string(samples.status().message()));
    }
    assigning_ = true;
    Batch batch = samples.ok() ? std::make_shared<const std::vector<v1::Sample>>(*std::move(samples)) : nullptr;
    host_->Commit(job_id_, std::move(writes), host_->WhileActive(job_id_, [this, step, batch] {
      assigning_ = false;
      if (batch == nullptr) return;  // stale or damaged samples were replaced; their replacements will come
      batch_ = batch;
      batch_step_ = step;
      watch_->Begin(step, batch);
      ServeBatch();
    }));
  }

  bool begun_ = false, paused_ = false, assigning_ = false;
  bool told_cut_ = false;      // that the model's context cuts answers
  bool held_by_halt_ = false;  // ranks wait for a batch that there may be already
  std::shared_ptr<const std::vector<v1::Prompt>> prompts_;
  // Prompts that were put in a step for ones that failed, as the newest step has them, and how many failed since one
  // did not.
  int64_t replaced_step_ = 0;
  size_t replaced_ = 0, failed_in_a_row_ = 0;
  StepIssuer issuer_{host_, job_id_};
  std::unique_ptr<StepWatch> watch_;
  std::string weights_address_;
  CommittedSteps steps_{job_id_};
  int64_t replay_through_ = 0;
  int refusals_ = 0;
  std::list<Waiter> waiters_;
  Batch batch_;
  int64_t batch_step_ = 0;
  std::map<std::string, double> last_metrics_;
};

v1::GroupAssignment PpoDriver::OnGroupForming(const std::string& job_id, uint64_t epoch, int ranks,
                                              const v1::PolicyVersion* held, const std::string& rank0_address) {
  v1::Job* row = job();
  WriteBatch batch;
  BeginEpoch(epoch, ranks, &batch);
  const int64_t committed = row->version().step();
  const bool holds = held != nullptr && held->step() == committed && held->digest() == row->version().digest();
  if (!holds && committed > row->checkpoint_step()) {
    if (const absl::Status status = deps().sampling->Rollback(job_id_, row->checkpoint_step(), &batch); !status.ok()) {
      // Nothing has changed. In a turn of its own: the group is being formed.
      deps().loop->Post([host = host_, job_id, reason = std::string(status.message())] {
        host->Fail(job_id, "STORE", absl::StrCat("its steps cannot be read for a return to the checkpoint: ", reason));
      });
      host_->Commit(job_id_, std::move(batch));
      return Assignment(epoch);
    }
    replay_through_ = std::max(replay_through_, committed);
    row->mutable_version()->set_step(row->checkpoint_step());
    const bool at_start = row->has_start() && row->checkpoint_step() == row->start().step();
    row->mutable_version()->set_digest(at_start ? row->start().weights_digest()
                                                : steps_.WeightsDigest(row->checkpoint_step()));
    row->set_step(row->checkpoint_step());
    host_->AppendMessage(
        row,
        absl::StrCat("nobody holds all of step ", committed, " any more: steps ", row->checkpoint_step() + 1, " to ",
                     committed, " are trained again, from the same batches"),
        &batch);
  }
  DropBatch();
  weights_address_ = rank0_address;
  deps().sampling->SetPolicy(job_id_, Policy(), &batch);
  UpdateSampling();
  v1::GroupAssignment assignment = Assignment(epoch);
  if (row->version().step() == row->checkpoint_step()) assignment.set_checkpoint(row->checkpoint());
  assignment.set_next_step(row->version().step() + 1);
  assignment.set_total_steps(row->total_steps());
  host_->Commit(job_id_, std::move(batch));
  return assignment;
}

void PpoDriver::CommitStep(const v1::CommitStepRequest& request, Done<v1::CommitStepResponse> done) {
  const int64_t step = request.step();
  if (step != NextStep() || deps().oversight->halted()) return CommitSeen(request, std::move(done));
  watch_->Begin(step, batch_step_ == step ? batch_ : nullptr);
  watch_->WhenSeen([this, request, done = std::move(done)](absl::Status seen) mutable {
    if (!seen.ok()) return done(seen);
    CommitSeen(request, std::move(done));
  });
}

void PpoDriver::CommitSeen(const v1::CommitStepRequest& request, Done<v1::CommitStepResponse> done) {
  v1::Job* row = job();
  v1::CommitStepResponse response;
  if (request.step() == row->version().step() && request.weights_digest() == row->version().digest()) {
    // A repeated call: answered alike, once everything before is durable.
    *response.mutable_version() = row->version();
    response.set_checkpoint(!yields_to_.empty());
    response.set_regroup(TakesIn(request));
    return AnswerThen(host_, job_id_, WriteBatch(), std::move(done), std::move(response));
  }
  if (deps().oversight->halted()) return done(HaltedError());
  const int64_t step = request.step();
  if (step != NextStep()) return done(OutOfOrder(step));
  RLHF_FAILPOINT("coordinator/before_commit_step");
  WriteBatch batch;
  deps().sampling->MarkTrained(job_id_, step, &batch);
  RecordStep(request, &batch);
  refusals_ = 0;
  v1::MetricPoint point = request.metrics();
  point.set_step(step);
  const std::vector<v1::Alert> alarms = watch_->Add(&point, &batch);
  DropBatch();
  TellCut(point, &batch);
  const bool stops = !alarms.empty() && spec().monitor().action() == v1::MONITOR_STOP;
  const bool fails = !alarms.empty() && spec().monitor().action() == v1::MONITOR_FAIL;
  if (stops) {
    EndAt(step, absl::StrCat("stopped at step ", step, ": ", alarms[0].text()), &batch);
    response.set_stop(true);
    response.set_stop_reason(alarms[0].text());
  }
  if (request.stop()) EndAt(step, absl::StrCat("stopped early at step ", step, ": ", request.stop_reason()), &batch);
  const Sampling::Rates rates = deps().sampling->RatesOf(job_id_);
  (*point.mutable_values())["samples_per_second"] = rates.samples_per_second;
  (*point.mutable_values())["tokens_per_second"] = rates.tokens_per_second;
  (*point.mutable_values())["total_steps"] = static_cast<double>(row->total_steps());
  RememberMetrics(point);
  host_->AppendMetrics(row, std::move(point), &batch);
  weights_address_ = request.weights_address();
  if (step >= replay_through_) deps().sampling->SetPolicy(job_id_, Policy(), &batch);
  issuer_.IssueSlice(&batch);
  *response.mutable_version() = row->version();
  response.set_checkpoint(!yields_to_.empty());
  const bool leave_now = !yields_to_.empty() && !deps().groups->CheckpointsOnRequest(job_id_);
  response.set_regroup(TakesIn(request));
  auto committed = host_->WhileActive(job_id_, [this, why = fails ? alarms[0].text() : std::string()] {
    if (!why.empty()) {
      TellResult();
      return host_->Fail(job_id_, "REWARD_HACKING", why);
    }
    UpdateSampling();
    IssueRest();
  });
  host_->CommitThen(job_id_, std::move(batch),
                    [host = host_, job_id = job_id_, this, loop = deps().loop, done = std::move(done), response,
                     yields = leave_now && !fails, committed = std::move(committed)](absl::Status status) mutable {
                      if (!status.ok()) return done(status);
                      RLHF_FAILPOINT("coordinator/after_commit_step");
                      done(response);
                      if (yields) YieldSoon(host, job_id, loop, this);
                      loop->Post(std::move(committed));
                    });
}

void PpoDriver::RememberMetrics(const v1::MetricPoint& point) {
  last_metrics_.clear();
  for (const auto& [name, value] : point.values()) {
    if (name.rfind("seconds/", 0) != 0 && name.rfind("_per_second") == std::string::npos && name != "total_steps")
      last_metrics_[name] = value;
  }
}

absl::Status PpoDriver::RecallMetrics() {
  if (!last_metrics_.empty()) return absl::OkStatus();
  constexpr int kNewest = 1000;
  const int64_t last = deps().events->LastSequence(job_id_);
  RLHF_ASSIGN_OR_RETURN(const std::vector<v1::JobEvent> events,
                        deps().events->Read(job_id_, std::max<int64_t>(0, last - kNewest), kNewest));
  const auto newest =
      std::find_if(events.rbegin(), events.rend(), [](const v1::JobEvent& event) { return event.has_metrics(); });
  if (newest != events.rend()) RememberMetrics(newest->metrics());
  return absl::OkStatus();
}

// Once, as it begins; how it goes on is in the metrics.
void PpoDriver::TellCut(const v1::MetricPoint& point, WriteBatch* batch) {
  const auto cut = point.values().find(absl::StrCat("monitor/", kCutByContext));
  if (told_cut_ || cut == point.values().end() || cut->second == 0) return;
  told_cut_ = true;
  host_->AppendMessage(
      job(),
      absl::StrCat("step ", point.step(), ": ", CutByContextMessage(cut->second, spec().sampling().max_new_tokens())),
      batch);
}

void PpoDriver::RecordStep(const v1::CommitStepRequest& request, WriteBatch* batch) {
  v1::Job* row = job();
  const int64_t step = request.step();
  if (step <= replay_through_ && steps_.EndedOtherwise(step, request.weights_digest())) {
    // Other bytes than the run this one replaces: what came after it is another history now.
    row->mutable_version()->set_lineage(row->version().lineage() + 1);
    watch_->ForgetSteps(step + 1, steps_.newest(), batch);
    steps_.ForgetAfter(step, batch);
    replay_through_ = step;
    host_->AppendMessage(row,
                         absl::StrCat("the replay of step ", step, " ended with other weights than before: lineage ",
                                      row->version().lineage()),
                         batch);
  }
  row->mutable_version()->set_step(step);
  row->mutable_version()->set_digest(request.weights_digest());
  row->set_step(step);
  group_trained_ = true;
  if (!request.numerics().empty()) row->set_numerics(request.numerics());
  steps_.Record(request, row->version().lineage(), batch);
}

// Prompts are replaced when nothing else of the step is to come, in the step's order: which prompt takes whose place
// depends on the prompts alone, not on who was quick.
void PpoDriver::OnStepEndedShort(const std::string&, int64_t step) {
  if (step > job()->total_steps()) return;  // stopped early: its samples were cancelled
  const std::vector<v1::SampleRow> failed = deps().sampling->FailedOf(job_id_, step);
  if (failed.empty()) return;
  if (spec().on_failed() != v1::FAILED_SAMPLE_REPLACES_PROMPT) return OnSampleFailed(job_id_, failed.front());
  if (step > job()->issued_through_step()) return;  // there is more to come
  std::vector<v1::SampleRow> first;                 // of each prompt
  for (const v1::SampleRow& row : failed) {
    if (first.empty() || first.back().id().ordinal() != row.id().ordinal()) first.push_back(row);
  }
  const size_t tried = step == replaced_step_ ? replaced_ : static_cast<size_t>(spec().prompts_per_step());
  failed_in_a_row_ = first.size() < tried ? 0 : failed_in_a_row_ + first.size();
  if (failed_in_a_row_ >= prompts_->size()) {
    return host_->Fail(job_id_, "SAMPLE_FAILED",
                       absl::StrCat(failed_in_a_row_, " prompts in a row failed, and there are ", prompts_->size(),
                                    "; the last: ", first.back().reason()));
  }
  replaced_step_ = step;
  replaced_ = first.size();
  v1::Job* row = job();
  WriteBatch batch;
  issuer_.FinishStep(&batch);  // of the prompts before those that come in
  for (const v1::SampleRow& one : first) {
    const auto name = [this](int64_t index) { return (*prompts_)[static_cast<size_t>(index) % prompts_->size()].id(); };
    const std::string why = absl::StrCat("prompt ", name(one.prompt_index()), " failed: ", one.reason());
    deps().sampling->ReplacePrompt(job_id_, step, one.id().ordinal(), absl::StrCat("another sample of ", why),
                                   row->prompt_cursor(), &batch);
    host_->AppendMessage(
        row, absl::StrCat("step ", step, ": ", why, "; prompt ", name(row->prompt_cursor()), " takes its place"),
        &batch);
    row->set_prompt_cursor(row->prompt_cursor() + 1);
  }
  host_->Commit(job_id_, std::move(batch));
}

void PpoDriver::RefuseStep(const v1::RefuseStepRequest& request, Done<v1::RefuseStepResponse> done) {
  v1::Job* row = job();
  if (request.step() != NextStep()) return done(OutOfOrder(request.step()));
  if (!deps().sampling->StepAssigned(job_id_, request.step())) {
    // A repeated call: this batch was refused already, and the new one has not been handed out.
    return AnswerThen(host_, job_id_, WriteBatch(), std::move(done));
  }
  if (++refusals_ >= kRefusalsInARow) {
    host_->Fail(job_id_, "NONFINITE",
                absl::StrCat("step ", request.step(), " was refused ", refusals_,
                             " times in a row, at last: ", request.reason()));
    return AnswerThen(host_, job_id_, WriteBatch(), std::move(done));
  }
  WriteBatch batch;
  issuer_.FinishStep(&batch);
  deps().sampling->RefuseStep(job_id_, request.step(), absl::StrCat("nonfinite: ", request.reason()),
                              row->prompt_cursor(), &batch);
  row->set_prompt_cursor(row->prompt_cursor() + spec().prompts_per_step());
  replaced_step_ = 0;  // all its prompts are tried anew
  host_->AppendMessage(
      row, absl::StrCat("step ", request.step(), " was refused (", request.reason(), "); it gets a new batch"), &batch);
  DropBatch();
  AnswerThen(host_, job_id_, std::move(batch), std::move(done));
}

}  // namespace

std::unique_ptr<Driver> MakePpoDriver(JobHost* host, const std::string& job_id) {
  return std::make_unique<PpoDriver>(host, job_id);
}

}  // namespace rlhf::coordinator
