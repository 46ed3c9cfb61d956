#include "coordinator/jobs/training_driver.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kYieldPatience = absl::Seconds(30);

}  // namespace

std::unique_ptr<Driver> MakeTrainingDriver(JobHost* host, const std::string& job_id) {
  return std::make_unique<TrainingDriver>(host, job_id);
}

void TrainingDriver::Start() {
  if (FinishedBefore()) return;
  if (!leaves_when_paused() || job()->state() != v1::PAUSED) Enroll();
}

void TrainingDriver::Enroll() {
  const v1::Job& row = *job();
  waiting_since_ = deps().loop->clock().Now();
  enrolled_ = true;
  TrainingPlan plan;
  plan.job_id = job_id_;
  plan.project = row.spec().project();
  plan.submitter = row.submitted_by();
  plan.priority = row.spec().priority();
  plan.ranks = row.spec().learners().ranks();
  plan.min_ranks = row.spec().learners().has_min_ranks() ? row.spec().learners().min_ranks() : plan.ranks;
  deps().groups->AddJob(plan, row.group_epoch(), this);
}

bool TrainingDriver::FinishedBefore() {
  if (job()->result().artifacts().count("model") == 0) return false;
  deps().loop->Post([host = host_, job_id = job_id_] { host->Succeed(job_id, WriteBatch()); });
  return true;
}

void TrainingDriver::Stop(WriteBatch* batch) {
  deps().groups->RemoveJob(job_id_);
}

void TrainingDriver::Withdraw() {
  enrolled_ = false;
  grouped_ = false;
  deps().groups->RemoveJob(job_id_);
}

void TrainingDriver::SetPaused(bool paused, WriteBatch* batch) {
  withdraws_ = paused;
  if (paused && !grouped_) {
    Withdraw();
  } else if (!paused) {
    RunsIfGrouped(batch);
    if (!enrolled_) Enroll();
  }
}

void TrainingDriver::RunsIfGrouped(WriteBatch* batch) {
  if (grouped_ && job()->state() == v1::PENDING) host_->SetState(job(), v1::RUNNING, "", "", batch);
}

void TrainingDriver::YieldSoon(JobHost* host, const std::string& job_id, EventLoop* loop, TrainingDriver* driver,
                               bool once_saved) {
  loop->Post(host->WhileActive(job_id, [driver, once_saved] {
    // A step that was reported meanwhile was answered with a call for a checkpoint of its own.
    if (once_saved && driver->job()->step() > driver->job()->checkpoint_step()) return;
    driver->Yield();
  }));
}

v1::GroupAssignment TrainingDriver::Assignment(uint64_t epoch) const {
  const v1::Job& row = *job();
  v1::GroupAssignment assignment;
  *assignment.mutable_spec() = row.spec();
  *assignment.mutable_resolved() = row.resolved();
  assignment.set_stage(row.stage());
  assignment.set_numerics(row.numerics());
  assignment.set_epoch(epoch);
  assignment.set_lineage(row.version().lineage());
  *assignment.mutable_committed() = row.version();
  return assignment;
}

void TrainingDriver::BeginEpoch(uint64_t epoch, int ranks, WriteBatch* batch) {
  v1::Job* row = job();
  row->set_group_epoch(epoch);
  const int wanted = std::max(1, row->spec().learners().ranks());
  if (ranks != (ranks_ > 0 ? ranks_ : wanted)) {
    host_->AppendMessage(row,
                         absl::StrCat("a group of ", ranks, " of ", wanted,
                                      " ranks forms: sums over another number of ranks differ in their last bits, so "
                                      "the run is statistically the same, not bit for bit"),
                         batch);
  }
  ranks_ = ranks;
  group_trained_ = false;
  yields_to_.clear();
  row->clear_preempted_by();
  grouped_ = true;
  RunsIfGrouped(batch);
}

v1::GroupAssignment TrainingDriver::OnGroupForming(const std::string& job_id, uint64_t epoch, int ranks,
                                                   const v1::PolicyVersion* held, const std::string& rank0_address) {
  v1::Job* row = job();
  WriteBatch batch;
  BeginEpoch(epoch, ranks, &batch);
  // Between checkpoints nothing of such a job is durable: it is trained again from the newest one, to the same bytes.
  if (row->checkpoint_step() < row->step())
    host_->AppendMessage(row, absl::StrCat("training goes on from step ", row->checkpoint_step()), &batch);
  v1::GroupAssignment assignment = Assignment(epoch);
  assignment.set_checkpoint(row->checkpoint());
  assignment.set_next_step(row->checkpoint_step() + 1);
  assignment.mutable_committed()->set_step(row->checkpoint_step());
  host_->Commit(job_id_, std::move(batch));
  return assignment;
}

int64_t TrainingDriver::StepOf(const std::string&) const {
  return job() == nullptr ? 0 : std::max<int64_t>(reported_step_, job()->version().step());
}

void TrainingDriver::OnGroupLost(const std::string& job_id, const std::string& why) {
  v1::Job* row = job();
  if (row == nullptr) return;
  grouped_ = false;
  yields_to_.clear();
  waiting_since_ = deps().loop->clock().Now();
  WriteBatch batch;
  host_->AppendMessage(
      row, absl::StrCat("the learner group broke: ", why, withdraws_ ? "; the job is paused" : "; forming it again"),
      &batch);
  if (withdraws_) Withdraw();
  host_->Commit(job_id_, std::move(batch));
}

void TrainingDriver::ReportProgress(const v1::ReportProgressRequest& request, Done<v1::ReportProgressResponse> done) {
  if (deps().oversight->halted()) return done(HaltedError());
  v1::Job* row = job();
  WriteBatch batch;
  for (v1::MetricPoint point : request.points()) {
    reported_step_ = point.step();
    group_trained_ = true;
    if (point.step() <= row->step()) continue;  // of a replay: known
    row->set_step(point.step());
    (*point.mutable_values())["total_steps"] = static_cast<double>(request.total_steps());
    host_->AppendMetrics(row, std::move(point), &batch);
  }
  row->set_total_steps(request.total_steps());
  v1::ReportProgressResponse response;
  response.set_checkpoint(leaving());
  // Without room there is no checkpoint either: what was trained since the last one is trained again.
  const bool leave_now = leaving() && (!deps().groups->CheckpointsOnRequest(job_id_) || PausedForVolume(*job()));
  host_->CommitThen(job_id_, std::move(batch),
                    [this, host = host_, job_id = job_id_, loop = deps().loop, leave_now, response,
                     done = std::move(done)](absl::Status status) mutable {
                      if (!status.ok()) return done(status);
                      done(response);
                      if (leave_now) YieldSoon(host, job_id, loop, this);
                    });
}

void TrainingDriver::ReportCheckpoint(const v1::ReportCheckpointRequest& request,
                                      Done<v1::ReportCheckpointResponse> done) {
  if (deps().oversight->halted()) return done(HaltedError());
  v1::Job* row = job();
  const absl::StatusOr<v1::Artifact> artifact = deps().artifacts->Resolve(request.digest(), row->spec().project());
  if (!artifact.ok()) return done(artifact.status());
  WriteBatch batch;
  checkpoints_.Add(request.step(), request.digest(), &batch);
  deps().artifacts->SetStep(request.digest(), request.step(), &batch);
  const bool leave = leaving() && request.step() >= row->step();
  host_->CommitThen(job_id_, std::move(batch),
                    [this, host = host_, job_id = job_id_, loop = deps().loop, leave,
                     done = std::move(done)](absl::Status status) mutable {
                      if (!status.ok()) return done(status);
                      done(v1::ReportCheckpointResponse());
                      if (leave) YieldSoon(host, job_id, loop, this, /*once_saved=*/true);
                    });
}

void TrainingDriver::FinishTraining(const v1::FinishTrainingRequest& request, Done<v1::FinishTrainingResponse> done) {
  if (deps().oversight->halted()) return done(HaltedError());
  v1::Job* row = job();
  if (row->has_start() && row->step() <= row->start().step()) {
    host_->Fail(job_id_, "NOTHING_TO_TRAIN",
                absl::StrCat("its epochs end no later than step ", row->start().step(), " of ", row->start().job_id(),
                             ", which it starts from: give it more epochs, or an earlier start_from.step"));
    return AnswerThen(host_, job_id_, WriteBatch(), std::move(done));
  }
  for (const auto& [name, digest] : request.artifacts()) {
    const absl::StatusOr<v1::Artifact> artifact = deps().artifacts->Resolve(digest, row->spec().project());
    if (!artifact.ok()) return done(Annotate(artifact.status(), absl::StrCat("artifact \"", name, "\"")));
  }
  row->mutable_result()->mutable_artifacts()->insert(request.artifacts().begin(), request.artifacts().end());
  for (const auto& [name, metric] : request.metrics()) (*row->mutable_result()->mutable_metrics())[name] = metric;
  WriteBatch batch;
  // The answer first: success removes the group, and with it the right to be answered.
  host_->CommitThen(
      job_id_, std::move(batch),
      [host = host_, job_id = job_id_, loop = deps().loop, done = std::move(done)](absl::Status status) mutable {
        if (!status.ok()) return done(status);
        done(v1::FinishTrainingResponse());
        loop->Post([host, job_id] { host->Succeed(job_id, WriteBatch()); });
      });
}

void TrainingDriver::GoBackACheckpoint(const std::string& why, Done<v1::FailTrainingResponse> done) {
  // Beginning anew would be another job than the one that was asked for.
  const v1::Job& row = *job();
  if (row.has_start() && CheckpointsOf(row, deps().store).begin()->first == row.checkpoint_step()) {
    host_->Fail(job_id_, "CHECKPOINT_DAMAGED",
                absl::StrCat("the checkpoint of step ", row.checkpoint_step(), " cannot be read (", why,
                             ") and there is none before it: submit the job with start_from at another one (`rlhfctl "
                             "checkpoints list`)"));
    return AnswerThen(host_, job_id_, WriteBatch(), std::move(done));
  }
  WriteBatch batch;
  checkpoints_.DropNewest(why, &batch);
  deps().groups->Break(job_id_, "its checkpoint is damaged");
  AnswerThen(host_, job_id_, std::move(batch), std::move(done));
}

void TrainingDriver::FailTraining(const v1::FailTrainingRequest& request, Done<v1::FailTrainingResponse> done) {
  if (request.reason_code() == "CHECKPOINT_DAMAGED" && !job()->checkpoint().empty())
    return GoBackACheckpoint(request.reason(), std::move(done));
  // That learner's fault, of its build or machine, not the job's.
  const bool beside = request.reason_code() == "UNLIKE_RANK_0";
  if (beside || request.reason_code() == "UNSUITED") {
    deps().groups->PassOver(job_id_, request.session_id(), request.reason(), beside);
    return AnswerThen(host_, job_id_, WriteBatch(), std::move(done));
  }
  host_->Fail(job_id_, request.reason_code(), request.reason());
  AnswerThen(host_, job_id_, WriteBatch(), std::move(done));
}

void TrainingDriver::OnYield(const std::string&, const std::string& to) {
  if (!yields_to_.empty() || job() == nullptr) return;
  yields_to_ = to;
  yields_since_ = deps().loop->clock().Now();
  WriteBatch batch;
  host_->AppendMessage(job(), "a job has a higher priority: this one makes room after its step", &batch);
  host_->Commit(job_id_, std::move(batch));
}

void TrainingDriver::Yield() {
  v1::Job* row = job();
  if (withdraws_) {
    yields_to_.clear();
    return Withdraw();
  }
  const std::string to = std::exchange(yields_to_, "");
  if (row == nullptr || to.empty() || IsTerminal(row->state())) return;
  grouped_ = false;
  waiting_since_ = deps().loop->clock().Now();
  row->set_preempted_by(to);
  const std::string why = "preempted by a job of higher priority";
  WriteBatch batch;
  if (row->state() == v1::RUNNING) host_->SetState(row, v1::PENDING, why, "PREEMPTED", &batch);
  deps().groups->Release(job_id_, why);
  host_->Commit(job_id_, std::move(batch));
}

void TrainingDriver::Tick() {
  // Nobody trains, and nobody knows when samples come: the one that waits for the learners has waited enough.
  if (!yields_to_.empty() && between_steps() && deps().loop->clock().Now() - yields_since_ > kYieldPatience) Yield();
}

void TrainingDriver::Describe(JobFacts* facts) {
  const LearnerGroups::Situation situation = deps().groups->SituationOf(job_id_);
  LearnerFacts& learners = facts->learners;
  learners.trains = true;
  learners.formed = situation.formed;
  learners.forming = situation.forming;
  learners.ranks = job()->spec().learners().ranks();
  learners.registered = situation.registered;
  learners.free = situation.free;
  learners.unsuited = situation.unsuited;
  learners.unsuited_why = situation.unsuited_why;
  learners.versions = situation.versions;
  learners.wait = situation.wait;
  learners.holders = situation.holders;
  learners.not_joined = situation.not_joined;
  learners.awaits_holders = situation.awaits_holders;
  learners.yielding = !yields_to_.empty();
  learners.yields_to = yields_to_;
  learners.since = situation.since;
  learners.broke = situation.broke;
  learners.next_in = situation.next_in;
  facts->first_of_group = situation.formed && !group_trained_;
  facts->saved_by = situation.rank_zero;
  // What was due before the group formed anew is not written any more.
  facts->checkpointing = situation.formed && !facts->first_of_group && !between_steps() && checkpoints_.due(leaving());
}

}  // namespace rlhf::coordinator
