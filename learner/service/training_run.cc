#include "learner/service/training_run.h"

#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/failpoint.h"
#include "common/host_port.h"
#include "common/learner_inputs.h"
#include "common/log.h"
#include "common/status_util.h"
#include "common/unsuited.h"
#include "google/protobuf/util/time_util.h"
#include "learner/metered_collective.h"
#include "learner/service/group_numerics.h"
#include "learner/trainable.h"
#include "model/guard.h"
#include "model/weights_io.h"

namespace rlhf::learner {
namespace {

constexpr absl::Duration kReportEvery = absl::Milliseconds(500);
constexpr absl::Duration kRoomPause = absl::Seconds(2);  // between tries to publish on a volume that takes nothing

bool JoinAgain(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsAborted(status) || absl::IsCancelled(status) ||
         absl::IsDeadlineExceeded(status) || ReasonOf(status) == v1::UNKNOWN_SESSION;
}

// The artifacts' volume, or this process's own, has no room or is read-only.
bool WaitsForVolume(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || ReasonOf(status) == v1::STORE_UNAVAILABLE;
}

std::string CheckpointName(int64_t step) {
  return absl::StrCat("checkpoint-", step);
}

const char* FailureCode(const absl::Status& status) {
  if (ReasonOf(status) == v1::DIGEST_MISMATCH) return "CHECKPOINT_DAMAGED";
  if (IsUnsuited(status)) return IsUnlikeRankZero(status) ? "UNLIKE_RANK_0" : "UNSUITED";
  if (absl::IsInvalidArgument(status) || absl::IsNotFound(status) || absl::IsDataLoss(status)) return "BAD_DATA";
  if (absl::IsFailedPrecondition(status)) return "SELF_CHECK";
  return "INTERNAL";
}

}  // namespace

// While it lives AwaitSaved waits. Of every rank: one that left would take its group with it.
class TrainingRun::Saving {
 public:
  explicit Saving(TrainingRun* run) : run_(run) { Set(true); }
  ~Saving() { Set(false); }
  Saving(const Saving&) = delete;
  Saving& operator=(const Saving&) = delete;

 private:
  void Set(bool saving) {
    absl::MutexLock lock(&run_->mu_);
    run_->saving_ = saving;
  }
  TrainingRun* const run_;
};

TrainingRun::TrainingRun(CoordinatorClient* coordinator, client::ArtifactCache* artifacts, WeightPublisher* publisher,
                         MetricsRegistry* metrics, const TrainingRunOptions& options)
    : coordinator_(coordinator),
      artifacts_(artifacts),
      publisher_(publisher),
      run_metrics_(metrics),
      options_(options),
      stuck_(options.stuck_after),
      meeting_(options.device),
      events_(options.tensorboard_dir, options.instance) {
  absl::StatusOr<client::StepLog> log = client::StepLog::Open(options_.evidence_dir, options_.instance);
  if (log.ok()) {
    step_log_ = *std::move(log);
  } else {
    spdlog::error("no step log is kept: {}", log.status().ToString());
  }
}

int TrainingRun::CheckpointEvery(const v1::JobSpec& spec) {
  switch (spec.kind_case()) {
    case v1::JobSpec::kSft:
      return spec.sft().checkpoint_every();
    case v1::JobSpec::kRewardModel:
      return spec.reward_model().checkpoint_every();
    case v1::JobSpec::kPpo:
      return spec.ppo().has_checkpoint_every() ? spec.ppo().checkpoint_every() : 20;
    default:
      return 0;
  }
}

void TrainingRun::AbortCollective() {
  std::shared_ptr<Collective> collective;
  {
    absl::MutexLock lock(&mu_);
    collective = collective_;
  }
  if (collective) collective->Abort();
}

bool TrainingRun::AwaitSaved(absl::Duration timeout) {
  absl::MutexLock lock(&mu_);
  const auto saved = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !saving_; };
  return mu_.AwaitWithTimeout(absl::Condition(&saved), timeout);
}

absl::Status TrainingRun::Train(const v1::GroupAssignment& group) {
  spdlog::info("job {}: rank {} of {} at epoch {}, from step {}", group.job_id(), group.rank(), group.world_size(),
               group.epoch(), group.next_step());
  absl::Status status = Connect(group);
  if (status.ok()) status = Prepare(group);
  if (status.ok()) status = TrainSteps(group);
  if (status.ok()) status = FinishJob(group);
  {
    absl::MutexLock lock(&mu_);
    collective_.reset();
  }
  if (trainer_) trainer_->SetCollective(nullptr);
  meeting_.SetCollective(nullptr);
  group_collective_.reset();
  run_metrics_.Left();
  rendezvous_.reset();
  unreported_.clear();
  if (!status.ok() && !JoinAgain(status)) {
    spdlog::error("job {} cannot be trained{}: {}", group.job_id(), IsUnsuited(status) ? " here" : "",
                  status.ToString());
    const absl::Status told = coordinator_->Fail(group, std::string(status.message()), FailureCode(status));
    if (!told.ok()) spdlog::warn("the failure was not taken: {}", told.ToString());
  }
  if (status.ok() || !JoinAgain(status)) {
    trainer_.reset();
    held_job_.clear();
    held_.Clear();
    publisher_->DropJob(group.job_id());
    events_.End();
  }
  return status;
}

absl::Status TrainingRun::Connect(const v1::GroupAssignment& group) {
  if (group.world_size() == 1) {
    group_collective_ = WithTimes(
        MakeSingleRank(), [](absl::Duration) {}, [this] { stuck_.Moved(); });
  } else {
    GroupOptions options;
    options.rank = group.rank();
    options.world_size = group.world_size();
    options.prefix = absl::StrCat(group.job_id(), "/", group.epoch(), "/");
    options.timeout = options_.collective_timeout;
    options.device = options_.device;
    options.interface_address = options_.advertise_host;
    if (group.rank() == 0) {
      RLHF_ASSIGN_OR_RETURN(rendezvous_, Rendezvous::Host(options.interface_address, options.timeout));
      options.store_host = options.interface_address;
      options.store_port = rendezvous_->port();
      RLHF_RETURN_IF_ERROR(
          coordinator_->PublishRendezvous(group, JoinHostPort(options_.advertise_host, rendezvous_->port())));
    } else {
      const absl::StatusOr<HostPort> address = ParseHostPort(group.rendezvous(), "rendezvous");
      if (!address.ok()) return absl::InternalError(address.status().message());
      options.store_host = address->host;
      options.store_port = address->port;
    }
    const RankMeeting::Alone scope(&meeting_);  // its waits, one after the other, have timeouts of their own
    RLHF_ASSIGN_OR_RETURN(std::unique_ptr<Collective> connected, ConnectGroup(options));
    group_collective_ = WithTimes(
        std::move(connected), [this](absl::Duration took) { run_metrics_.AllReduced(took); },
        [this] { stuck_.Moved(); });
  }
  meeting_.SetCollective(group_collective_.get());
  absl::MutexLock lock(&mu_);
  collective_ = group_collective_;
  run_metrics_.Joined(group);
  return absl::OkStatus();
}

bool TrainingRun::Holds(const v1::GroupAssignment& group, int64_t step) const {
  if (!trainer_ || held_job_ != group.job_id() || held_.step() != step ||
      held_.digest() != group.committed().digest() || step == 0)
    return false;
  // A share is verified together with the others; without a digest to verify it by (jobs without a ledger) it is not
  // used.
  if (group.spec().learners().shard_optimizer_state()) return !held_.digest().empty();
  // The others are seeded from it.
  const std::string has = held_.digest().empty() ? "" : model::WeightsDigest(trainer_->model());
  if (has == held_.digest()) return true;
  spdlog::error("expected to hold weights {} of step {}, found {}: they are not used", held_.digest(), step, has);
  return false;
}

absl::Status TrainingRun::Prepare(const v1::GroupAssignment& group) {
  RLHF_RETURN_IF_ERROR(CheckSuits(group));
  RLHF_RETURN_IF_ERROR(AgreeOnNumerics(group, &meeting_));
  const int64_t start = group.next_step() - 1;  // committed steps the group begins with
  const bool holds = Holds(group, start);
  // Every rank takes part in every vote, also one that needs nothing: what ranks exchange must stay paired.
  TrainerInputs inputs;
  inputs.spec = group.spec();
  inputs.device = options_.device;
  absl::Status prepared;
  RLHF_RETURN_IF_ERROR(meeting_.Together(
      [&]() -> absl::Status {
        if (holds) return absl::OkStatus();
        for (const std::string& reference : LearnerReferences(group.spec())) {
          const auto digest = group.resolved().find(reference);
          if (digest == group.resolved().end())
            return absl::InternalError(absl::StrCat("the assignment does not say what \"", reference, "\" is"));
          const absl::StatusOr<std::string> path = artifacts_->Fetch(digest->second);
          // Without its reason: DIGEST_MISMATCH stands for a damaged checkpoint (FailureCode).
          if (!path.ok()) return absl::Status(path.status().code(), path.status().message());
          inputs.local[reference] = *path;
        }
        // What is said to be held is what the trainer has: should the group break before the new one has the job's
        // weights, nothing is held.
        held_job_.clear();
        held_.Clear();
        trainer_.reset();
        RLHF_ASSIGN_OR_RETURN(trainer_, Trainer::Create(inputs));
        return absl::OkStatus();
      },
      &prepared));
  // A rank whose data cannot be had or read must not leave the others waiting in a collective.
  RLHF_ASSIGN_OR_RETURN(const bool all_prepared, group_collective_->Vote(prepared.ok()));
  if (!prepared.ok()) return prepared;
  if (!all_prepared) return absl::AbortedError("another rank could not prepare the job");
  trainer_->SetCollective(group_collective_.get());
  RLHF_RETURN_IF_ERROR(Restore(group, holds));
  held_job_ = group.job_id();
  held_ = group.committed();
  held_.set_step(start);
  // A file is rank 0's; who is it no more leaves the job's to another.
  if (group.rank() == 0) {
    events_.Begin(group.job_id(), group.next_step());
  } else {
    events_.End();
  }
  // Rollout workers may need the version the group starts from.
  if (group.spec().has_ppo() && start > 0 && group.rank() == 0)
    RLHF_RETURN_IF_ERROR(publisher_->Stage(group.job_id(), held_, trainer_->model()));
  return absl::OkStatus();
}

// Who holds the committed weights? They seed the others; where nobody does, or a share of the optimizer's state is
// missing, all start from the checkpoint.
absl::Status TrainingRun::Restore(const v1::GroupAssignment& group, bool holds) {
  const int64_t start = group.next_step() - 1;
  const auto world = static_cast<size_t>(group.world_size());
  std::vector<double> table(3 * world, 0.0);  // of each rank: whether it holds them, which share, of how many
  if (holds) {
    const Share share = trainer_->share();
    const size_t row = 3 * static_cast<size_t>(group.rank());
    table[row] = 1;
    table[row + 1] = share.index;
    table[row + 2] = share.count;
  }
  RLHF_RETURN_IF_ERROR(SumOverRanks(&table, options_.device, group_collective_.get()));
  std::vector<std::optional<Share>> held(world);
  size_t holders = 0;
  for (size_t rank = 0; rank < world; ++rank) {
    if (table[3 * rank] == 0) continue;
    held[rank] = Share{static_cast<int>(table[3 * rank + 1]), static_cast<int>(table[3 * rank + 2])};
    ++holders;
  }
  if (const std::vector<int> owners = OwnersOf(held); !owners.empty()) {
    const bool all_have_it = holders == world && !group.spec().learners().shard_optimizer_state();
    return all_have_it ? absl::OkStatus() : SyncFrom(group, owners);
  }
  if (!group.checkpoint().empty()) {
    absl::Status loaded;
    // Half read it is nothing that may be offered to the next group.
    held_job_.clear();
    held_.Clear();
    RLHF_RETURN_IF_ERROR(meeting_.Together([&] { return LoadVerified(group.checkpoint()); }, &loaded));
    RLHF_ASSIGN_OR_RETURN(const bool all, group_collective_->Vote(loaded.ok()));
    RLHF_RETURN_IF_ERROR(loaded);
    return all ? absl::OkStatus() : absl::AbortedError("another rank could not load the checkpoint");
  }
  if (start == 0) return absl::OkStatus();
  // Who says that it holds nothing lets the coordinator go back to the checkpoint.
  held_job_.clear();
  held_.Clear();
  return absl::AbortedError(absl::StrCat(holders > 0 ? "a share of the optimizer's state" : "no rank holds the weights",
                                         " of step ", start,
                                         holders > 0 ? " is lost and there is no checkpoint of it; joining again"
                                                     : " and there is no checkpoint; joining again"));
}

absl::Status TrainingRun::SyncFrom(const v1::GroupAssignment& group, const std::vector<int>& owners) {
  const absl::Status synced = trainer_->SyncFrom(owners);
  // Some of its parts may be divided anew, others not: what it has is no whole share any more.
  if (!synced.ok() && group.spec().learners().shard_optimizer_state()) {
    held_job_.clear();
    held_.Clear();
  }
  RLHF_RETURN_IF_ERROR(synced);
  if (!group.spec().learners().shard_optimizer_state()) return absl::OkStatus();
  const std::string has = model::WeightsDigest(trainer_->model());
  const bool same = has == group.committed().digest();
  RLHF_ASSIGN_OR_RETURN(const bool all_same, group_collective_->Vote(same));
  if (all_same) return absl::OkStatus();
  if (!same)
    spdlog::error("expected weights {} of the ranks' shares together, found {}: they are not used",
                  group.committed().digest(), has);
  held_job_.clear();
  held_.Clear();
  return absl::AbortedError("the ranks' shares together are not the committed weights; joining again");
}

int64_t TrainingRun::TotalSteps(const v1::GroupAssignment& group) const {
  return group.total_steps() > 0 ? group.total_steps() : trainer_->total_steps();
}

absl::Status TrainingRun::LoadVerified(const std::string& checkpoint) {
  // Bytes on a disk are trusted by their digests alone; what does not match is given back to the coordinator, which
  // goes back to the checkpoint before it.
  absl::Status whole = artifacts_->Verify(checkpoint);
  if (absl::IsNotFound(whole)) whole = WithReason(absl::DataLossError(whole.message()), v1::DIGEST_MISMATCH);
  RLHF_RETURN_IF_ERROR(whole);
  RLHF_ASSIGN_OR_RETURN(const std::string dir, artifacts_->Fetch(checkpoint));
  return trainer_->LoadCheckpoint(dir);
}

absl::Status TrainingRun::TrainSteps(const v1::GroupAssignment& group) {
  const bool ledger = group.spec().has_ppo();
  bool stop = false;
  for (int64_t step = group.next_step(); step <= TotalSteps(group) && !stop;) {
    bool advanced = true;
    const LogScope scope({.step = step});
    if (ledger) {
      RLHF_RETURN_IF_ERROR(TrainLedgerStep(group, step, &advanced, &stop));
    } else {
      RLHF_RETURN_IF_ERROR(TrainLocalStep(group, step));
    }
    ++progress_;
    if (!advanced) continue;
    RLHF_RETURN_IF_ERROR(MaybeCheckpoint(group, step));
    ++step;
  }
  if (ledger) return absl::OkStatus();
  RLHF_RETURN_IF_ERROR(WitnessLocalStep(group, trainer_->total_steps()));
  return meeting_.ByRankZero("report its last steps", [&] { return FlushProgress(group, trainer_->total_steps()); });
}

absl::Status TrainingRun::TrainLocalStep(const v1::GroupAssignment& group, int64_t step) {
  std::optional<StuckWatch::Work> work(&stuck_);
  RLHF_ASSIGN_OR_RETURN(StepResult result, trainer_->RunStep(step, {}));
  work.reset();
  if (!result.trained) {
    // The same data would give the same result: there is no other batch to try.
    return absl::FailedPreconditionError(absl::StrCat("step ", step, " was refused: ", result.refusal));
  }
  held_.set_step(step);
  if (group.rank() != 0) return absl::OkStatus();
  v1::MetricPoint point;
  point.set_job_id(group.job_id());
  point.set_step(step);
  *point.mutable_at() = google::protobuf::util::TimeUtil::GetCurrentTime();
  point.mutable_values()->insert(result.metrics.begin(), result.metrics.end());
  unreported_.push_back(std::move(point));
  run_metrics_.Committed(result.metrics);
  events_.Step(step, result.metrics);
  return absl::OkStatus();
}

bool TrainingRun::ReportDue(const v1::GroupAssignment& group) const {
  return group.rank() == 0 && !unreported_.empty() && Clock::Real()->Now() - last_report_ >= kReportEvery;
}

absl::Status TrainingRun::FlushProgress(const v1::GroupAssignment& group, int64_t step) {
  if (group.rank() != 0 || unreported_.empty()) return absl::OkStatus();
  RLHF_RETURN_IF_ERROR(coordinator_->Report(group, std::exchange(unreported_, {}), step, trainer_->total_steps()));
  last_report_ = Clock::Real()->Now();
  return absl::OkStatus();
}

std::string TrainingRun::StagingFolder(const v1::GroupAssignment& group, const std::string& name) const {
  return (std::filesystem::path(options_.work_dir) / absl::StrCat(group.job_id(), "-", name)).string();
}

absl::Status TrainingRun::MakeEmpty(const std::string& dir) {
  std::error_code ignored;
  std::filesystem::remove_all(dir, ignored);
  return MakeDirs(dir);
}

absl::StatusOr<std::string> TrainingRun::PublishFolder(
    const v1::GroupAssignment& group, const std::string& name, const std::string& kind,
    const std::function<absl::Status(const std::string& dir)>& write) {
  const std::string dir = StagingFolder(group, name);
  RLHF_RETURN_IF_ERROR(write(dir));
  const std::string project = group.spec().project().empty() ? "default" : group.spec().project();
  auto digest = artifacts_->Publish(dir, kind, project, group.job_id());
  std::error_code ignored;
  std::filesystem::remove_all(dir, ignored);
  return digest;
}

absl::Status TrainingRun::MaybeCheckpoint(const v1::GroupAssignment& group, int64_t step) {
  const int every = CheckpointEvery(group.spec());
  // Only rank 0 hears what the coordinator asks for, also in answer to its report, which a halt or a coordinator that
  // is away may keep for any time.
  absl::Status reported;
  const bool report = ReportDue(group);
  RLHF_ASSIGN_OR_RETURN(const std::vector<double> told, meeting_.Sum(2, report, [&] {
    if (report) reported = FlushProgress(group, step);
    return std::vector<double>{reported.ok() ? 0.0 : 1.0, coordinator_->TakeCheckpointRequest() ? 1.0 : 0.0};
  }));
  RLHF_RETURN_IF_ERROR(reported);
  if (told[0] > 0) return absl::AbortedError("rank 0 could not report its steps");
  const bool due = told[1] > 0 || (every > 0 && step % every == 0);
  if (!due || step >= TotalSteps(group)) return absl::OkStatus();
  const Saving saving(this);
  if (!group.spec().has_ppo()) RLHF_RETURN_IF_ERROR(WitnessLocalStep(group, step));
  std::function<absl::Status(const std::string&)> write = [this](const std::string& dir) {
    RLHF_RETURN_IF_ERROR(MakeEmpty(dir));
    return trainer_->SaveCheckpoint(dir);
  };
  if (group.spec().learners().shard_optimizer_state()) {
    // The ranks exchange their shares now, on this thread; what rank 0 has written is published in its own time.
    const std::string dir = StagingFolder(group, CheckpointName(step));
    const absl::Status made = group.rank() == 0 ? MakeEmpty(dir) : absl::OkStatus();
    absl::Status staged = trainer_->SaveCheckpoint(dir);
    if (absl::IsUnavailable(staged)) return staged;
    staged.Update(made);
    write = [staged](const std::string&) { return staged; };
  }
  absl::Status written;
  RLHF_RETURN_IF_ERROR(meeting_.Together(
      [&] { return group.rank() == 0 ? PublishCheckpoint(group, step, write) : absl::OkStatus(); }, &written));
  return written;
}

absl::Status TrainingRun::PublishCheckpoint(const v1::GroupAssignment& group, int64_t step,
                                            const std::function<absl::Status(const std::string& dir)>& write) {
  RLHF_FAILPOINT("learner/checkpoint");
  // The steps that it holds first: a job that pauses leaves with the checkpoint, and what is not reported by then is
  // not.
  RLHF_RETURN_IF_ERROR(FlushProgress(group, step));
  const absl::Time start = absl::Now();
  const absl::StatusOr<std::string> digest = PublishFolder(group, CheckpointName(step), "checkpoint", write);
  RLHF_FAILPOINT("learner/checkpoint_published");
  const absl::Status status = digest.ok() ? coordinator_->Checkpoint(group, step, *digest) : digest.status();
  run_metrics_.Checkpointed(absl::Now() - start, status.ok());
  if (digest.ok()) return status;
  // The older one is intact and training can go on; a full or read-only volume is the operator's to mend.
  spdlog::error("no checkpoint of step {}: {}", step, digest.status().ToString());
  return JoinAgain(status) && !absl::IsUnavailable(status) ? status : absl::OkStatus();
}

absl::Status TrainingRun::FinishJob(const v1::GroupAssignment& group) {
  const Saving saving(this);
  const RankMeeting::Alone scope(&meeting_);
  const std::filesystem::path scratch =
      std::filesystem::path(options_.work_dir) / absl::StrCat(group.job_id(), "-finish-", group.rank());
  std::error_code ignored;
  std::filesystem::remove_all(scratch, ignored);
  RLHF_RETURN_IF_ERROR(MakeDirs(scratch.string()));
  auto metrics = trainer_->Finish(scratch.string());
  absl::Status status = metrics.status();
  if (status.ok() && group.rank() == 0) {
    absl::StatusOr<std::string> digest;
    do {
      digest = PublishFolder(group, "model", "model", [&](const std::string& dir) -> absl::Status {
        RLHF_RETURN_IF_ERROR(MakeEmpty(dir));
        std::error_code error;
        std::filesystem::copy(
            scratch, dir, std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing,
            error);
        return error ? absl::ErrnoToStatus(error.value(), "cannot stage the model") : absl::OkStatus();
      });
      if (!digest.ok()) spdlog::error("the model is not published yet: {}", digest.status().ToString());
      // A full or read-only volume is the operator's to mend; what was trained waits for it.
    } while (WaitsForVolume(digest.status()) && coordinator_->SleepUnlessCancelled(kRoomPause));
    status = digest.ok() ? coordinator_->Finish(group, {{"model", *digest}}, *metrics) : digest.status();
  }
  std::filesystem::remove_all(scratch, ignored);
  // Rank 0's end is everybody's: who leaves earlier breaks the group. When the end takes longer than a collective may,
  // the coordinator tells.
  const absl::StatusOr<bool> ended = group_collective_->Vote(status.ok());
  if (group.rank() == 0 || !status.ok()) return status;
  if (ended.ok()) return *ended ? absl::OkStatus() : absl::AbortedError("rank 0 could not finish the job");
  coordinator_->WaitCancelled();
  return ended.status();
}

}  // namespace rlhf::learner
