#include "coordinator/jobs/job_table.h"
#include "coordinator/payload_retention.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "artifact/digest.h"
#include "common/known_fields.h"
#include "common/log.h"
#include "common/status_util.h"
#include "coordinator/jobs/size_spec.h"
#include "coordinator/jobs/spec.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

constexpr int kCheckpointsLookedAt = 1000;  // a turn of the loop

}  // namespace

std::unique_ptr<Jobs> MakeJobs(const JobsDeps& deps) {
  JobsDeps complete = deps;
  if (complete.batches == nullptr) complete.batches = complete.background;
  return std::make_unique<JobTable>(complete);
}

absl::Status JobTable::Recover() {
  std::vector<v1::Job> rows;
  RLHF_RETURN_IF_ERROR(deps_.store->Scan(Table::kJobs, "", [&](absl::string_view, absl::string_view value) {
    rows.emplace_back().ParseFromArray(value.data(), static_cast<int>(value.size()));
    return true;
  }));
  std::sort(rows.begin(), rows.end(), [](const v1::Job& a, const v1::Job& b) {
    const absl::Time at = FromTimestamp(a.created_at()), bt = FromTimestamp(b.created_at());
    return at != bt ? at < bt : a.id() < b.id();
  });
  for (v1::Job& row : rows) {
    v1::Job& job = jobs_[row.id()].job;
    job = std::move(row);
    index_.Add(&job);
  }
  RLHF_RETURN_IF_ERROR(deleted_.Recover());
  RLHF_RETURN_IF_ERROR(request_time_.Begin(deps_.store, &deps_.loop->clock()));
  WriteBatch closed;
  RLHF_RETURN_IF_ERROR(CloseDeadGates(&closed));
  if (!closed.empty()) deps_.store->Commit(std::move(closed), [](absl::Status) {});
  std::map<std::string, int64_t> freed;  // the step through which a job's payloads were
  const std::string mark = FreedKey("");
  RLHF_RETURN_IF_ERROR(deps_.store->Scan(Table::kMeta, mark, [&](absl::string_view key, absl::string_view value) {
    (void)absl::SimpleAtoi(value, &freed[std::string(key.substr(mark.size()))]);
    return true;
  }));
  // Drivers start on the loop after recovery: stages before pipelines would look for each other.
  for (const auto& [number, job] : index_.all()) {
    const std::string& id = job->id();
    if (!IsTerminal(job->state())) {
      deps_.loop->Post([this, id] { Admit(id); });
    } else if (const int64_t keeps = job->spec().retention().sample_steps();
               keeps > 0 && job->step() - keeps > freed[id]) {
      deps_.loop->Post([this, id] { FreeAfterEnd(id); });  // should it have ended just before the last end
    }
  }
  return absl::OkStatus();
}

absl::Status JobTable::CloseDeadGates(WriteBatch* batch) {
  v1::ListGatesRequest request;
  request.mutable_page()->set_page_size(1000);
  request.add_states(v1::GATE_WAITING);
  std::set<std::string> ended;
  do {
    RLHF_ASSIGN_OR_RETURN(const v1::ListGatesResponse page, deps_.oversight->ListGates(request));
    for (const v1::GateRow& gate : page.gates()) {
      const v1::Job* job = Find(gate.job_id());
      if (job == nullptr || IsTerminal(job->state())) ended.insert(gate.job_id());
    }
    request.mutable_page()->set_page_token(page.next_page_token());
  } while (!request.page().page_token().empty());
  for (const std::string& id : ended) {
    const v1::Job* job = Find(id);
    deps_.oversight->CloseGates(
        id,
        job == nullptr ? "its pipeline was deleted" : absl::StrCat("its pipeline is ", v1::JobState_Name(job->state())),
        batch);
  }
  return absl::OkStatus();
}

absl::Status JobTable::UnknownJob(const std::string& id) {
  return WithReason(absl::NotFoundError(absl::StrCat("no job \"", id, "\"; `rlhfctl list` names those there are")),
                    v1::UNKNOWN_JOB);
}

JobTable::Entry* JobTable::FindEntry(const std::string& job_id) {
  const auto it = jobs_.find(job_id);
  return it == jobs_.end() ? nullptr : &it->second;
}

v1::Job* JobTable::Find(const std::string& job_id) {
  Entry* entry = FindEntry(job_id);
  return entry == nullptr ? nullptr : &entry->job;
}

std::string JobTable::NewId(const std::string& name) {
  static std::mt19937_64 random{std::random_device{}()};
  while (true) {
    const std::string id = absl::StrFormat("%s-%08x", name, static_cast<uint32_t>(random()));
    if (jobs_.count(id) == 0) return id;
  }
}

v1::Job& JobTable::Insert(v1::JobSpec spec) {
  const std::string id = NewId(spec.name());
  v1::Job& job = jobs_[id].job;
  job.set_id(id);
  *job.mutable_spec() = std::move(spec);
  job.set_state(v1::PENDING);
  job.set_etag("0");
  *job.mutable_created_at() = ToTimestamp(deps_.loop->clock().WallNow());
  index_.Add(&job);
  return job;
}

void JobTable::PutRow(v1::Job* job, WriteBatch* batch) {
  int64_t version = 0;
  (void)absl::SimpleAtoi(job->etag(), &version);
  job->set_etag(absl::StrCat(version + 1));
  batch->Put(Table::kJobs, job->id(), job->SerializeAsString());
}

void JobTable::CommitThen(const std::string& job_id, WriteBatch batch, absl::AnyInvocable<void(absl::Status)> done) {
  Entry* entry = FindEntry(job_id);
  std::string parent;
  if (entry != nullptr) {
    PutRow(&entry->job, &batch);
    parent = entry->job.parent_id();
  }
  deps_.store->Commit(std::move(batch), [this, job_id, parent, done = std::move(done)](absl::Status status) mutable {
    if (status.ok()) {
      deps_.loop->Post([this, job_id, parent] {
        deps_.events->Published(job_id);
        if (!parent.empty()) deps_.events->Published(parent);
      });
    } else {
      const LogScope scope({.job_id = job_id});
      spdlog::error("job {}: a write was not kept: {}", job_id, std::string(status.message()));
    }
    deps_.loop->Post([this, failure = std::string(status.message())] { store_failure_ = failure; });
    done(status);
  });
}

void JobTable::Commit(const std::string& job_id, WriteBatch batch, absl::AnyInvocable<void()> then) {
  CommitThen(job_id, std::move(batch), [this, then = std::move(then)](absl::Status status) mutable {
    if (status.ok() && then) deps_.loop->Post(std::move(then));
  });
}

void JobTable::SetState(v1::Job* job, v1::JobState to, const std::string& reason, const std::string& code,
                        WriteBatch* batch) {
  if (job->state() == to && job->reason() == reason) return;
  v1::JobEvent event;
  event.mutable_state()->set_from(job->state());
  event.mutable_state()->set_to(to);
  event.mutable_state()->set_reason(reason);
  deps_.events->Append(job->id(), std::move(event), batch);
  const LogScope scope({.job_id = job->id(), .step = job->step()});
  spdlog::info("job {}: {} -> {}{}{}", job->id(), v1::JobState_Name(job->state()), v1::JobState_Name(to),
               reason.empty() ? "" : ": ", reason);
  const google::protobuf::Timestamp now = ToTimestamp(deps_.loop->clock().WallNow());
  if (!job->has_started_at() && (to == v1::RUNNING || to == v1::WAITING)) *job->mutable_started_at() = now;
  if (IsTerminal(to)) *job->mutable_finished_at() = now;
  if (job->state() != to) {
    *job->mutable_state_since() = now;
    *job->mutable_last_progress_at() = now;
  }
  index_.Moves(*job, to);
  job->set_state(to);
  job->set_reason(reason);
  job->set_reason_code(code);
}

void JobTable::AppendMetrics(v1::Job* job, v1::MetricPoint point, WriteBatch* batch) {
  point.set_job_id(job->id());
  if (!point.has_at()) *point.mutable_at() = ToTimestamp(deps_.loop->clock().WallNow());
  *job->mutable_last_progress_at() = point.at();
  v1::JobEvent event;
  *event.mutable_metrics() = std::move(point);
  deps_.events->Append(job->id(), std::move(event), batch);
}

void JobTable::AppendMessage(v1::Job* job, const std::string& text, WriteBatch* batch) {
  v1::JobEvent event;
  event.set_message(text);
  deps_.events->Append(job->id(), std::move(event), batch);
  const LogScope scope({.job_id = job->id(), .step = job->step()});
  spdlog::info("job {}: {}", job->id(), text);
}

void JobTable::AppendAlert(v1::Job* job, const v1::Alert& alert, WriteBatch* batch) {
  v1::JobEvent event;
  *event.mutable_alert() = alert;
  deps_.events->Append(job->id(), std::move(event), batch);
  deps_.oversight->Audit("coordinator", absl::StrCat("alert.", alert.monitor()), job->id(), "done",
                         {{"step", absl::StrCat(job->step())},
                          {"slice", alert.slice()},
                          {"value", absl::StrCat(alert.value())},
                          {"bound", absl::StrCat(alert.bound())}},
                         batch);
  const LogScope scope({.job_id = job->id(), .step = job->step()});
  spdlog::warn("job {}: alert {}: {}", job->id(), alert.monitor(), alert.text());
}

void JobTable::EndInto(Entry* entry, v1::JobState state, const std::string& reason, const std::string& code,
                       WriteBatch* batch) {
  const std::string& job_id = entry->job.id();
  if (entry->driver != nullptr) {
    entry->driver->Stop(batch);
    // It may be on the stack.
    deps_.loop->Post([driver = std::shared_ptr<Driver>(std::move(entry->driver))] {});
  }
  // Of one that is held, or whose prompts are still being read, no driver has its samples.
  deps_.sampling->CancelStored(job_id, !entry->job.spec().has_ppo(), batch);
  const v1::LedgerCounts counts = deps_.sampling->Counts(job_id);
  if (counts.issued() > 0) {
    v1::JobEvent event;
    *event.mutable_ledger() = counts;
    deps_.events->Append(job_id, std::move(event), batch);
    deps_.sampling->Close(job_id, batch);
  }
  deps_.oversight->CloseGates(job_id, absl::StrCat("its pipeline is ", v1::JobState_Name(state)), batch);
  SetState(&entry->job, state, reason, code, batch);
}

std::vector<std::string> JobTable::CancelStages(const std::string& job_id, const std::string& reason,
                                                WriteBatch* batch) {
  std::vector<std::string> ended;
  const v1::Job* job = Find(job_id);
  if (job == nullptr) return ended;
  for (const std::string& child : job->children()) {
    Entry* stage = FindEntry(child);
    if (stage == nullptr || IsTerminal(stage->job.state())) continue;
    EndInto(stage, v1::CANCELLED, reason, "", batch);
    PutRow(&stage->job, batch);
    ended.push_back(child);
  }
  return ended;
}

void JobTable::EndWith(const std::string& job_id, v1::JobState state, const std::string& reason,
                       const std::string& code, WriteBatch batch, absl::AnyInvocable<void(absl::Status)> done) {
  Entry* entry = FindEntry(job_id);
  if (entry == nullptr || IsTerminal(entry->job.state())) return done(absl::OkStatus());
  // With its stages: a crash between two batches would leave a pipeline whose stage was cancelled, which fails.
  std::vector<std::string> stages = CancelStages(job_id, state == v1::FAILED ? "its pipeline failed" : reason, &batch);
  EndInto(entry, state, reason, code, &batch);
  CommitThen(job_id, std::move(batch),
             [this, job_id, parent = entry->job.parent_id(), stages = std::move(stages),
              done = std::move(done)](absl::Status status) mutable {
               if (status.ok()) {
                 deps_.loop->Post([this, job_id, stages = std::move(stages)] {
                   for (const std::string& stage : stages) {
                     deps_.events->Published(stage);
                     FreeAfterEnd(stage);
                   }
                   FreeAfterEnd(job_id);
                 });
               }
               if (status.ok() && !parent.empty()) {
                 deps_.loop->Post([this, job_id, parent] {
                   Entry* pipeline = FindEntry(parent);
                   Entry* stage = FindEntry(job_id);
                   if (pipeline != nullptr && pipeline->driver != nullptr && stage != nullptr)
                     pipeline->driver->OnStageEnded(stage->job);
                 });
               }
               done(status);
             });
}

void JobTable::FreeAfterEnd(const std::string& job_id) {
  const v1::Job* job = Find(job_id);
  if (job == nullptr || deps_.retention == nullptr || job->spec().retention().sample_steps() == 0) return;
  deps_.retention->FreeThrough(job_id, job->step() - job->spec().retention().sample_steps());
}

void JobTable::DeleteUnlessKept(const std::string& digest, const std::string& after) {
  bool used = !CheckUnused(digest, [](const std::string&) { return true; }).ok();
  // Equal runs have equal checkpoints, and those of ended jobs are theirs still.
  int rows = 0;
  std::string last;
  const absl::Status read = used ? absl::OkStatus()
                                 : deps_.store->ScanAfter(Table::kMeta, CheckpointPrefix(), after,
                                                          [&](absl::string_view key, absl::string_view value) {
                                                            used = value == digest;
                                                            last = std::string(key);
                                                            return !used && ++rows < kCheckpointsLookedAt;
                                                          });
  if (used || !read.ok()) return;
  if (rows == kCheckpointsLookedAt) return deps_.loop->Post([this, digest, last] { DeleteUnlessKept(digest, last); });
  v1::DeleteArtifactRequest request;
  request.set_digest(digest);
  deps_.artifacts->Delete(request, nullptr, [digest](const absl::StatusOr<v1::DeleteArtifactResponse>& deleted) {
    if (deleted.ok()) return spdlog::info("deleted the checkpoint {}, which the job's retention lets go", digest);
    if (!absl::IsFailedPrecondition(deleted.status()) && !absl::IsNotFound(deleted.status()))
      spdlog::warn("the checkpoint {} stays: {}", digest, deleted.status().ToString());
  });
}

void JobTable::Succeed(const std::string& job_id, WriteBatch batch) {
  EndWith(job_id, v1::SUCCEEDED, "", "", std::move(batch), [](absl::Status) {});
}

void JobTable::Fail(const std::string& job_id, const std::string& code, const std::string& reason) {
  EndWith(job_id, v1::FAILED, reason, code, WriteBatch(), [](absl::Status) {});
}

std::string JobTable::AddStage(v1::Job* pipeline, const v1::StageSpec& stage, v1::JobSpec spec,
                               std::map<std::string, std::string> resolved, int round, int repeat, WriteBatch* batch) {
  v1::Job& job = Insert(std::move(spec));
  job.set_parent_id(pipeline->id());
  job.set_stage(stage.name());
  job.set_round(round);
  job.set_repeat(repeat);
  job.set_submitted_by(pipeline->submitted_by());
  job.mutable_resolved()->insert(resolved.begin(), resolved.end());
  pipeline->add_children(job.id());
  const std::string id = job.id();
  PutRow(&job, batch);
  deps_.loop->Post([this, id] { StartDriver(id); });
  return id;
}

std::vector<std::string> JobTable::InTheWayOf(const v1::Job& job) const {
  // Stages are part of their pipeline; what has started once keeps its place.
  if (!job.parent_id().empty() || job.has_started_at() || deps_.quotas == nullptr) return {};
  std::vector<std::string> of_project, of_submitter;
  const int project = deps_.quotas->Of(job.spec().project(), "").max_jobs();
  const int submitter = deps_.quotas->Of(job.spec().project(), job.submitted_by()).max_jobs();
  if (project <= 0 && submitter <= 0) return {};
  for (const auto& [number, other] : index_.active()) {
    if (!other->parent_id().empty() || other->spec().project() != job.spec().project() ||
        jobs_.at(other->id()).driver == nullptr)
      continue;
    of_project.push_back(other->id());
    if (other->submitted_by() == job.submitted_by()) of_submitter.push_back(other->id());
  }
  if (submitter > 0 && static_cast<int>(of_submitter.size()) >= submitter) return of_submitter;
  if (project > 0 && static_cast<int>(of_project.size()) >= project) return of_project;
  return {};
}

void JobTable::Admit(const std::string& job_id) {
  Entry* entry = FindEntry(job_id);
  if (entry == nullptr) return;
  entry->admissible = true;
  EndHold(entry);
  if (entry->driver != nullptr || !InTheWayOf(entry->job).empty()) return;
  StartDriver(job_id);
}

absl::Status JobTable::CheckKnownHere(const v1::Job& job) {
  return CheckKnown(job.spec(), "its specification", "the coordinator");
}

// Of a job that a newer release began nothing is run, and nothing is lost: who goes back to that release goes on.
void JobTable::HoldForNewerRelease(Entry* entry, const absl::Status& known) {
  v1::Job& job = entry->job;
  // For want of a volume it is paused by its driver, and it has none here.
  if (job.state() == v1::PAUSED && !PausedForVolume(job)) return;
  if (job.state() == v1::WAITING && job.reason_code() == kNewerRelease && job.reason() == known.message()) return;
  const bool started = job.has_started_at();
  WriteBatch batch;
  SetState(&job, v1::WAITING, std::string(known.message()), kNewerRelease, &batch);
  if (!started) job.clear_started_at();  // it waits for its place among its project's jobs still
  CommitThen(job.id(), std::move(batch), [](absl::Status) {});
}

// Its driver says what it is once it is there.
void JobTable::EndHold(Entry* entry) {
  v1::Job& job = entry->job;
  if (job.state() != v1::WAITING || job.reason_code() != kNewerRelease || !CheckKnownHere(job).ok()) return;
  WriteBatch batch;
  SetState(&job, v1::PENDING, "", "", &batch);
  CommitThen(job.id(), std::move(batch), [](absl::Status) {});
}

void JobTable::StartDriver(const std::string& job_id) {
  Entry* entry = FindEntry(job_id);
  if (entry == nullptr || entry->driver != nullptr || IsTerminal(entry->job.state())) return;
  const v1::JobSpec& spec = entry->job.spec();
  if (const absl::Status known = CheckKnownHere(entry->job); !known.ok()) return HoldForNewerRelease(entry, known);
  // From before there was a bound: what would take all memory is not begun.
  if (const std::string problems = SizeProblems(spec); !problems.empty()) return Fail(job_id, "INVALID_SPEC", problems);
  if (spec.has_pipeline())
    entry->driver = MakePipelineDriver(this, job_id);
  else if (spec.has_ppo())
    entry->driver = MakePpoDriver(this, job_id);
  else if (spec.has_sample() || spec.has_evaluate())
    entry->driver = MakeGeneratingDriver(this, job_id);
  else if (spec.has_collect())
    entry->driver = MakeCollectDriver(this, job_id);
  else
    entry->driver = MakeTrainingDriver(this, job_id);
  entry->driver->Start();
}

template <typename Request, typename Response>
void JobTable::Route(const Request& request, Done<Response> done,
                     void (Driver::*call)(const Request&, Done<Response>)) {
  Entry* entry = FindEntry(request.job_id());
  if (entry == nullptr) return done(UnknownJob(request.job_id()));
  if (entry->driver == nullptr) {
    return done(WithReason(
        absl::AbortedError(absl::StrCat("job ", request.job_id(), " is ", v1::JobState_Name(entry->job.state()))),
        v1::JOB_NOT_ACTIVE));
  }
  (entry->driver.get()->*call)(request, std::move(done));
}

void JobTable::NextBatch(const v1::NextBatchRequest& request, Done<Driver::Batch> done) {
  Route(request, std::move(done), &Driver::NextBatch);
}
void JobTable::CommitStep(const v1::CommitStepRequest& request, Done<v1::CommitStepResponse> done) {
  Route(request, std::move(done), &Driver::CommitStep);
}
void JobTable::RefuseStep(const v1::RefuseStepRequest& request, Done<v1::RefuseStepResponse> done) {
  Route(request, std::move(done), &Driver::RefuseStep);
}
void JobTable::ReportProgress(const v1::ReportProgressRequest& request, Done<v1::ReportProgressResponse> done) {
  Route(request, std::move(done), &Driver::ReportProgress);
}
void JobTable::ReportCheckpoint(const v1::ReportCheckpointRequest& request, Done<v1::ReportCheckpointResponse> done) {
  Route(request, std::move(done), &Driver::ReportCheckpoint);
}
void JobTable::FinishTraining(const v1::FinishTrainingRequest& request, Done<v1::FinishTrainingResponse> done) {
  Route(request, std::move(done), &Driver::FinishTraining);
}
void JobTable::FailTraining(const v1::FailTrainingRequest& request, Done<v1::FailTrainingResponse> done) {
  Route(request, std::move(done), &Driver::FailTraining);
}

absl::StatusOr<v1::GetCommittedResponse> JobTable::GetCommitted(const std::string& job_id) {
  Entry* entry = FindEntry(job_id);
  if (entry == nullptr) return UnknownJob(job_id);
  if (entry->driver != nullptr) entry->driver->RefuseWaitingCommits();
  const v1::Job* job = &entry->job;
  v1::GetCommittedResponse response;
  *response.mutable_version() = job->version();
  return response;
}

void JobTable::Tick() {
  request_time_.Keep();
  ForgetOldRequests();
  std::vector<std::string> ids, waiting;
  for (const auto& [number, job] : index_.active()) {
    const Entry& entry = jobs_.at(job->id());
    if (entry.driver != nullptr) {
      ids.push_back(job->id());
    } else if (entry.admissible && job->state() == v1::PENDING) {
      waiting.push_back(job->id());
    }
  }
  std::stable_sort(waiting.begin(), waiting.end(), [this](const std::string& a, const std::string& b) {
    return jobs_.at(a).job.spec().priority() > jobs_.at(b).job.spec().priority();
  });
  for (const std::string& id : waiting) Admit(id);
  for (const std::string& id : ids) {
    Entry* entry = FindEntry(id);
    if (entry != nullptr && entry->driver != nullptr) FollowRoom(entry);
    if (entry != nullptr && entry->driver != nullptr) entry->driver->Tick();
  }
}

void JobTable::FollowRoom(Entry* entry) {
  v1::Job& job = entry->job;
  const bool paused_for_room = job.state() == v1::PAUSED && PausedForVolume(job);
  // The numbers in the reason change all the time; another code is another trouble.
  const bool as_it_is = paused_for_room ? out_of_room_code_ == job.reason_code() && !out_of_room_.empty()
                                        : out_of_room_.empty() || job.state() == v1::PAUSED;
  if (as_it_is) return;
  WriteBatch batch;
  if (paused_for_room && !out_of_room_.empty()) {
    SetState(&job, v1::PAUSED, out_of_room_, out_of_room_code_, &batch);
    return Commit(job.id(), std::move(batch), nullptr);
  }
  if (paused_for_room) {
    SetState(&job, StateAfterPause(job), "", "", &batch);
  } else {
    SetState(&job, v1::PAUSED, out_of_room_, out_of_room_code_, &batch);
  }
  entry->driver->SetPaused(!paused_for_room, &batch);
  Commit(job.id(), std::move(batch), nullptr);
}

}  // namespace rlhf::coordinator
