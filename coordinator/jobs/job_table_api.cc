// What people and scripts ask of the job table.
#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "common/canonical_bytes.h"
#include "common/status_util.h"
#include "coordinator/jobs/context_spec.h"
#include "coordinator/jobs/job_table.h"
#include "coordinator/jobs/spec.h"
#include "coordinator/jobs/start_from.h"
#include "coordinator/ledger.h"
#include "coordinator/payload_retention.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

constexpr int kRequestsLookedAt = 500;  // on the loop, a tick
constexpr absl::Duration kRequestsPassEvery = absl::Minutes(10);

// Two projects may each have somebody of this name ("ci"), who knows nothing of the other's requests.
std::string RequestKey(const std::string& project, const std::string& subject, const std::string& request_id) {
  return absl::StrCat(project, "/", subject, "/SubmitJob/", request_id);
}
// As releases before 2026-12 wrote it.
std::string OldRequestKey(const std::string& subject, const std::string& request_id) {
  return absl::StrCat(subject, "/SubmitJob/", request_id);
}

// Why an artifact is not what a reference names, by its files; empty when it may be. Said before a job waits for
// workers that cannot use it.
std::string NotWhatIsNamed(bool model, const v1::Artifact& artifact) {
  const bool may_be = std::any_of(artifact.files().begin(), artifact.files().end(), [model](const v1::FileEntry& file) {
    return model ? file.path() == "config.json"
                 : absl::EndsWith(file.path(), ".jsonl") && !absl::StrContains(file.path(), '/');
  });
  if (may_be) return "";
  const std::string first = artifact.files().empty() ? "nothing" : absl::StrCat("\"", artifact.files(0).path(), "\"");
  return absl::StrCat(model ? "expected a model, with a config.json" : "expected data, with a .jsonl file", "; found ",
                      first, artifact.files_size() > 1 ? absl::StrCat(" and ", artifact.files_size() - 1, " more") : "",
                      " in ", artifact.digest());
}

}  // namespace

std::vector<v1::SpecProblem> JobTable::ResolveReferences(v1::JobSpec* spec,
                                                         std::map<std::string, std::string>* resolved,
                                                         absl::Status* first_error,
                                                         const std::set<std::string>& uploads) {
  std::vector<v1::SpecProblem> problems;
  for (const Reference& reference : ReferencesOf(spec)) {
    if (problems.size() >= kMostProblems) break;
    std::string problem;
    if (absl::StartsWith(*reference.value, "stage:") || absl::StartsWith(*reference.value, "approved:")) {
      if (!spec->has_pipeline())
        problem = "expected a digest or an alias: only a pipeline's stages can name one another";
    } else if (absl::StartsWith(*reference.value, "file:")) {
      problem = absl::StrCat("expected a digest or an alias, found \"", *reference.value,
                             "\": `rlhfctl submit` uploads files first");
    } else if (uploads.count(*reference.value) > 0) {
      (*resolved)[*reference.value] = *reference.value;
    } else {
      const absl::StatusOr<v1::Artifact> artifact = deps_.artifacts->Resolve(*reference.value, spec->project());
      if (artifact.ok()) {
        (*resolved)[*reference.value] = artifact->digest();
        problem = NotWhatIsNamed(reference.model, *artifact);
      } else {
        problem = std::string(artifact.status().message());
        if (first_error->ok()) *first_error = Annotate(artifact.status(), reference.field);
      }
    }
    if (problem.empty()) continue;
    v1::SpecProblem& added = problems.emplace_back();
    added.set_field(reference.field);
    added.set_problem(problem);
  }
  return problems;
}

namespace {

// An approved policy without a card that anybody can check is worth less than none: said before people are asked.
void CheckSigner(const Signer* signer, const v1::JobSpec& spec, std::vector<v1::SpecProblem>* problems) {
  if (signer != nullptr) return;
  for (int i = 0; i < spec.pipeline().stages_size(); ++i) {
    if (spec.pipeline().stages(i).gate().publish_as().empty()) continue;
    v1::SpecProblem& added = problems->emplace_back();
    added.set_field(absl::StrCat("pipeline.stages[", i, "].gate.publish_as"));
    added.set_problem(
        "expected a coordinator that can sign the policy's model card, found one without a key: start it with "
        "--audit-key-file, or leave out publish_as");
  }
}

}  // namespace

const v1::Job* JobTable::StartsFrom(const v1::JobSpec& spec) {
  if (!spec.has_start_from()) return nullptr;
  const std::string project = spec.project().empty() ? "default" : spec.project();
  const absl::StatusOr<v1::Job> from = Get(spec.start_from().job(), project);
  return from.ok() && from->spec().project() == project ? Find(from->id()) : nullptr;
}

v1::ValidateJobResponse JobTable::Validate(const v1::ValidateJobRequest& request) {
  v1::ValidateJobResponse response;
  if (const std::vector<v1::SpecProblem> large = TooLarge(request.spec()); !large.empty()) {
    response.mutable_problems()->Assign(large.begin(), large.end());
    return response;
  }
  v1::JobSpec completed = request.spec();
  const std::set<std::string> uploads(request.uploads().begin(), request.uploads().end());
  const v1::Job* from = StartsFrom(completed);
  FillInFromStart(from, &completed);
  std::vector<v1::SpecProblem> problems = CompleteSpec(&completed);
  CheckSigner(deps_.oversight->audit().signer(), completed, &problems);
  std::map<std::string, std::string> resolved;
  absl::Status unresolved;
  for (v1::SpecProblem& problem : ResolveReferences(&completed, &resolved, &unresolved, uploads))
    problems.push_back(std::move(problem));
  CheckContexts(completed, resolved, *deps_.artifacts, &problems);
  if (problems.empty()) FindStart(from, resolved, deps_.store, deps_.artifacts, &completed, &problems);
  response.mutable_problems()->Assign(problems.begin(), problems.end());
  if (problems.empty()) *response.mutable_completed() = completed;
  return response;
}

void JobTable::Submit(const std::string& subject, const v1::SubmitJobRequest& request,
                      Done<v1::SubmitJobResponse> done) {
  if (request.request_id().empty())
    return done(absl::InvalidArgumentError("request_id: expected a UUID of the caller's, found nothing"));
  v1::RequestRow accepted;
  accepted.set_body_sha256(artifact::Sha256Hex(CanonicalBytes(request.spec())));
  const std::string key = RequestKey(request.spec().project(), subject, request.request_id());
  v1::RequestRow before;
  if (const auto it = requests_.find(key); it != requests_.end()) {
    before = it->second;
  } else if (const absl::StatusOr<std::string> stored = deps_.store->Get(Table::kRequests, key); stored.ok()) {
    before.ParseFromString(*stored);
  } else if (const absl::StatusOr<std::string> old =
                 deps_.store->Get(Table::kRequests, OldRequestKey(subject, request.request_id()));
             old.ok()) {
    before.ParseFromString(*old);
    const v1::Job* job = Find(before.response());
    if (job == nullptr || job->spec().project() != request.spec().project()) before.Clear();
  }
  const absl::Time now = request_time_.Now();
  if (!before.body_sha256().empty() && now - FromTimestamp(before.created_at()) < kRequestsKept) {
    if (before.body_sha256() != accepted.body_sha256()) {
      return done(WithReason(absl::AlreadyExistsError(absl::StrCat("request_id ", request.request_id(),
                                                                   " was used for another job: use a new one")),
                             v1::REQUEST_ID_REUSED));
    }
    // Behind the first call's write in the store's order.
    return deps_.store->Commit(WriteBatch(),
                               [this, job_id = before.response(), done = std::move(done)](absl::Status status) mutable {
                                 if (!status.ok()) return done(status);
                                 deps_.loop->Post([this, job_id, done = std::move(done)]() mutable {
                                   const v1::Job* job = Find(job_id);
                                   if (job == nullptr) return done(UnknownJob(job_id));
                                   v1::SubmitJobResponse response;
                                   *response.mutable_job() = *job;
                                   done(std::move(response));
                                 });
                               });
  }
  v1::JobSpec spec = request.spec();
  const v1::Job* from = StartsFrom(spec);
  FillInFromStart(from, &spec);
  std::vector<v1::SpecProblem> problems = CompleteSpec(&spec);
  CheckSigner(deps_.oversight->audit().signer(), spec, &problems);
  std::map<std::string, std::string> resolved;
  absl::Status unresolved;
  if (problems.empty()) problems = ResolveReferences(&spec, &resolved, &unresolved);
  if (!unresolved.ok()) return done(unresolved);
  if (problems.empty()) CheckContexts(spec, resolved, *deps_.artifacts, &problems);
  v1::StartPoint start;
  if (problems.empty()) start = FindStart(from, resolved, deps_.store, deps_.artifacts, &spec, &problems);
  if (!problems.empty()) return done(WithReason(absl::InvalidArgumentError(JoinProblems(problems)), v1::INVALID_SPEC));

  v1::Job& job = Insert(std::move(spec));
  job.mutable_resolved()->insert(resolved.begin(), resolved.end());
  job.set_submitted_by(subject);
  job.set_request_id(request.request_id());
  accepted.set_response(job.id());
  *accepted.mutable_created_at() = ToTimestamp(now);
  requests_[key] = accepted;
  WriteBatch batch;
  batch.Put(Table::kRequests, key, accepted.SerializeAsString());
  AppendMessage(&job, absl::StrCat("submitted by ", subject), &batch);
  if (job.spec().has_start_from()) BeginAt(this, start, &job, &batch);
  deps_.oversight->Audit(subject, "job.submit", job.id(), "done",
                         {{"kind", KindOf(job.spec())}, {"spec_sha256", accepted.body_sha256()}}, &batch);
  const std::string id = job.id();
  CommitThen(id, std::move(batch), [this, id, done = std::move(done)](absl::Status status) mutable {
    if (!status.ok()) return done(status);
    deps_.loop->Post([this, id, done = std::move(done)]() mutable {
      const v1::Job* stored = Find(id);
      v1::SubmitJobResponse response;
      if (stored != nullptr) *response.mutable_job() = *stored;
      done(std::move(response));
      Admit(id);
    });
  });
}

void JobTable::ForgetOldRequests() {
  if (deps_.loop->clock().Now() < next_requests_pass_) return;
  const absl::Time now = request_time_.Now();
  WriteBatch expired;
  int looked_at = 0;
  std::string last;
  const absl::Status read =
      deps_.store->ScanAfter(Table::kRequests, "", requests_seen_, [&](absl::string_view key, absl::string_view value) {
        v1::RequestRow row;
        row.ParseFromArray(value.data(), static_cast<int>(value.size()));
        last = std::string(key);
        // One that was used again has a new row, which may be on its way to the store.
        if (const auto it = requests_.find(last); it != requests_.end()) row = it->second;
        if (now - FromTimestamp(row.created_at()) > kRequestsKept) expired.Erase(Table::kRequests, last);
        return ++looked_at < kRequestsLookedAt;
      });
  const bool through = !read.ok() || looked_at < kRequestsLookedAt;
  requests_seen_ = through ? "" : last;
  if (through) next_requests_pass_ = deps_.loop->clock().Now() + kRequestsPassEvery;
  for (const WriteBatch::Op& op : expired.ops) requests_.erase(op.key);
  if (!expired.empty()) deps_.store->Commit(std::move(expired), [](absl::Status) {});
}

absl::StatusOr<v1::Job*> JobTable::ForChange(const std::string& job_id, const std::string& etag) {
  v1::Job* job = Find(job_id);
  if (job == nullptr) return UnknownJob(job_id);
  if (!etag.empty() && etag != job->etag()) {
    return WithReason(absl::AbortedError(absl::StrCat("etag: expected ", job->etag(), ", found ", etag,
                                                      ": the job changed meanwhile; get it again")),
                      v1::ETAG_MISMATCH);
  }
  return job;
}

void JobTable::Cancel(const std::string& subject, const v1::CancelJobRequest& request, Done<v1::Job> done) {
  const absl::StatusOr<v1::Job*> job = ForChange(request.job_id(), request.etag());
  if (!job.ok()) return done(job.status());
  const std::string id = (*job)->id();
  if (IsTerminal((*job)->state())) {
    // The end may be a write of this call's first try: answered behind it in the store's order.
    return deps_.store->Commit(WriteBatch(), [row = **job, done = std::move(done)](absl::Status status) mutable {
      if (!status.ok()) return done(status);
      if (row.state() == v1::CANCELLED) return done(std::move(row));
      done(WithReason(absl::FailedPreconditionError(
                          absl::StrCat("the job is ", v1::JobState_Name(row.state()), ": nothing is left to cancel")),
                      v1::JOB_NOT_ACTIVE));
    });
  }
  const std::string reason = request.reason().empty() ? absl::StrCat("cancelled by ", subject)
                                                      : absl::StrCat("cancelled by ", subject, ": ", request.reason());
  WriteBatch batch;
  deps_.oversight->Audit(subject, "job.cancel", id, "done", {{"reason", request.reason()}}, &batch);
  EndWith(id, v1::CANCELLED, reason, "", std::move(batch),
          [this, id, done = std::move(done)](absl::Status status) mutable {
            if (!status.ok()) return done(status);
            deps_.loop->Post([this, id, done = std::move(done)]() mutable {
              const v1::Job* ended = Find(id);
              if (ended == nullptr) return done(UnknownJob(id));
              done(*ended);
            });
          });
}

void JobTable::SetPausedTree(const std::string& job_id, bool paused, const std::string& reason, WriteBatch* batch) {
  Entry* entry = FindEntry(job_id);
  if (entry == nullptr || IsTerminal(entry->job.state())) return;
  for (const std::string& child : entry->job.children()) {
    SetPausedTree(child, paused, reason, batch);
    if (Entry* stage = FindEntry(child); stage != nullptr && !IsTerminal(stage->job.state()))
      PutRow(&stage->job, batch);
  }
  // A person's pause outlasts the one for want of room.
  if (paused && entry->job.state() == v1::PAUSED && PausedForVolume(entry->job))
    return SetState(&entry->job, v1::PAUSED, reason, "", batch);
  if (paused == (entry->job.state() == v1::PAUSED)) return;
  SetState(&entry->job, paused ? v1::PAUSED : StateAfterPause(entry->job), reason, "", batch);
  if (entry->driver != nullptr) return entry->driver->SetPaused(paused, batch);
  // One that is held says again for what.
  if (!paused && entry->admissible) deps_.loop->Post([this, job_id] { Admit(job_id); });
}

void JobTable::Pause(const std::string& subject, const v1::PauseJobRequest& request, Done<v1::Job> done) {
  const absl::StatusOr<v1::Job*> job = ForChange(request.job_id(), request.etag());
  if (!job.ok()) return done(job.status());
  if (IsTerminal((*job)->state())) {
    return done(
        WithReason(absl::FailedPreconditionError(absl::StrCat("the job is ", v1::JobState_Name((*job)->state()))),
                   v1::JOB_NOT_ACTIVE));
  }
  WriteBatch batch;
  SetPausedTree((*job)->id(), true, absl::StrCat("paused by ", subject), &batch);
  deps_.oversight->Audit(subject, "job.pause", (*job)->id(), "done", {}, &batch);
  CommitThen((*job)->id(), std::move(batch), [row = **job, done = std::move(done)](absl::Status status) mutable {
    if (!status.ok()) return done(status);
    done(std::move(row));
  });
}

void JobTable::Resume(const std::string& subject, const v1::ResumeJobRequest& request, Done<v1::Job> done) {
  const absl::StatusOr<v1::Job*> job = ForChange(request.job_id(), request.etag());
  if (!job.ok()) return done(job.status());
  if (IsTerminal((*job)->state())) {
    return done(WithReason(
        absl::FailedPreconditionError(absl::StrCat("the job is ", v1::JobState_Name((*job)->state()), ", not PAUSED")),
        v1::JOB_NOT_ACTIVE));
  }
  if ((*job)->state() != v1::PAUSED) {
    // It goes on already, perhaps by this call's first try: answered behind that write in the store's order.
    return deps_.store->Commit(WriteBatch(), [row = **job, done = std::move(done)](absl::Status status) mutable {
      if (!status.ok()) return done(status);
      done(std::move(row));
    });
  }
  WriteBatch batch;
  SetPausedTree((*job)->id(), false, "", &batch);
  deps_.oversight->Audit(subject, "job.resume", (*job)->id(), "done", {}, &batch);
  CommitThen((*job)->id(), std::move(batch), [row = **job, done = std::move(done)](absl::Status status) mutable {
    if (!status.ok()) return done(status);
    done(std::move(row));
  });
}

void JobTable::Delete(const std::string& subject, const v1::DeleteJobRequest& request,
                      Done<v1::DeleteJobResponse> done) {
  const absl::StatusOr<v1::Job*> job = ForChange(request.job_id(), request.etag());
  if (!job.ok()) return done(job.status());
  if (!IsTerminal((*job)->state())) {
    return done(absl::FailedPreconditionError(
        absl::StrCat("the job is ", v1::JobState_Name((*job)->state()), ": cancel it first")));
  }
  if (!(*job)->parent_id().empty() && Find((*job)->parent_id()) != nullptr) {
    return done(
        absl::FailedPreconditionError(absl::StrCat("a stage is deleted with its pipeline, ", (*job)->parent_id())));
  }
  std::vector<std::string> ids((*job)->children().begin(), (*job)->children().end());
  ids.push_back((*job)->id());
  WriteBatch batch;
  for (const std::string& id : ids) {
    DeletedRows::Mark(id, &batch);
    batch.Erase(Table::kMeta, FreedKey(id));
    batch.Erase(Table::kJobs, id);
    batch.Erase(Table::kMeta, Ledger::BaseKey(id));
    deps_.oversight->DropGates(id, &batch);
    batch.Erase(Table::kMeta, CollectAgeKey(id));
    batch.EraseAll(Table::kMeta, CheckpointPrefix(id));  // with them the job would hold checkpoints that nobody has
    deps_.sampling->RemoveJob(id);
    if (deps_.retention != nullptr) deps_.retention->Forget(id);
    if (const v1::Job* deleted = Find(id); deleted != nullptr) index_.Remove(*deleted);
    jobs_.erase(id);
  }
  deps_.oversight->Audit(subject, "job.delete", ids.back(), "done", {}, &batch);
  deps_.store->Commit(std::move(batch), [this, ids, done = std::move(done)](absl::Status status) mutable {
    if (!status.ok()) return done(status);
    done(v1::DeleteJobResponse());
    deps_.loop->Post([this, ids] {
      for (const std::string& id : ids) deleted_.Begin(id);
    });
  });
}

absl::Status JobTable::CheckUnused(const std::string& digest, const Sees& sees) const {
  for (auto it = index_.active().rbegin(); it != index_.active().rend(); ++it) {
    const v1::Job& job = *it->second;
    bool uses = job.checkpoint() == digest;
    for (const auto& [reference, resolved] : job.resolved()) uses = uses || resolved == digest;
    for (const auto& [name, made] : job.result().artifacts()) uses = uses || made == digest;
    if (uses) {
      const std::string who = sees(job.spec().project())
                                  ? absl::StrCat("the active job ", job.id(), " (", job.spec().name(), ")")
                                  : kJobElsewhere;
      return absl::FailedPreconditionError(absl::StrCat(who, " uses ", digest, "; wait for its end or cancel it"));
    }
  }
  return absl::OkStatus();
}

bool JobTable::Hidden(const std::string& job_id, const Sees& sees) const {
  const auto it = jobs_.find(job_id);
  return !sees(it == jobs_.end() ? "*" : it->second.job.spec().project());
}

v1::Job JobTable::Shown(v1::Job job, const Sees& sees) const {
  if (!job.preempted_by().empty() && Hidden(job.preempted_by(), sees)) job.set_preempted_by(kJobElsewhere);
  return job;
}

JobFacts JobTable::FactsOf(const Entry& entry, const Sees& sees) {
  JobFacts facts;
  facts.job = Shown(entry.job, sees);
  const absl::Time now = deps_.loop->clock().WallNow();
  const absl::Time created = FromTimestamp(entry.job.created_at());
  const auto since = [&](bool known, const google::protobuf::Timestamp& at) {
    return std::max(absl::ZeroDuration(), now - (known ? FromTimestamp(at) : created));
  };
  facts.in_state = since(entry.job.has_state_since(), entry.job.state_since());
  facts.no_progress = since(entry.job.has_last_progress_at(), entry.job.last_progress_at());
  facts.store_failure = store_failure_;
  const v1::ServiceState service = deps_.oversight->state();
  facts.halted = service.halted();
  facts.halted_by = service.by();
  facts.halt_reason = service.reason();
  if (entry.driver != nullptr) {
    entry.driver->Describe(&facts);
  } else {
    facts.quota_holders = InTheWayOf(entry.job);
    facts.over_job_quota = !facts.quota_holders.empty();
    facts.starting = !facts.over_job_quota;
    facts.newer_release = std::string(CheckKnownHere(entry.job).message());
  }
  if (const Entry* stage = FindEntry(facts.stage_id); stage != nullptr && stage->driver != nullptr)
    facts.stage_waits_for = ExplainFacts(FactsOf(*stage, sees)).waits_for();
  HideJobs([&](const std::string& id) { return Hidden(id, sees); }, &facts);
  return facts;
}

absl::StatusOr<v1::ExplainJobResponse> JobTable::Explain(const std::string& job_id, const Sees& sees) {
  const Entry* entry = FindEntry(job_id);
  if (entry == nullptr) return UnknownJob(job_id);
  return ExplainFacts(FactsOf(*entry, sees));
}

}  // namespace rlhf::coordinator
