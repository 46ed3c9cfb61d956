#include "coordinator/comparison_sets.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_util.h"
#include "coordinator/feedback/import_log_rows.h"
#include "coordinator/names.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

// Everything but the rater's, into a new file. Returns its end, or the old end when there is nothing of the rater.
absl::StatusOr<std::pair<v1::PayloadRef, int64_t>> Rewrite(const std::string& from, const std::string& to,
                                                           const v1::PayloadRef& end, const std::string& rater) {
  RLHF_ASSIGN_OR_RETURN(const auto reader, ImportLogReader::Open(from, end.offset()));
  RLHF_ASSIGN_OR_RETURN(const auto writer, ImportLogWriter::Open(to, 0));
  v1::Comparison comparison;
  int64_t removed = 0;
  while (true) {
    RLHF_ASSIGN_OR_RETURN(const bool more, reader->Next(&comparison));
    if (!more) break;
    if (comparison.rater() == rater) {
      ++removed;
      continue;
    }
    RLHF_RETURN_IF_ERROR(writer->Append(comparison));
  }
  if (removed == 0) {
    std::remove(to.c_str());
    return std::pair(end, removed);
  }
  v1::PayloadRef made;
  made.set_segment(end.segment() + 1);
  RLHF_ASSIGN_OR_RETURN(const uint64_t length, writer->Sync());
  made.set_offset(length);
  return std::pair(made, removed);
}

}  // namespace

std::string ComparisonSets::LogPath(const std::string& project, const std::string& set, uint32_t generation) const {
  return absl::StrCat(data_dir_, "/", ImportLogPath(project, set, generation));
}

absl::StatusOr<v1::PayloadRef> ComparisonSets::LogEnd(const std::string& project, const std::string& set) const {
  const absl::StatusOr<std::string> row = store_->Get(Table::kMeta, ImportLogKey(project, set));
  v1::PayloadRef end;
  if (row.ok())
    end.ParseFromString(*row);
  else if (!absl::IsNotFound(row.status()))
    return row.status();
  return end;
}

absl::StatusOr<std::shared_ptr<ImportSession>> ComparisonSets::BeginImport(const std::string& project,
                                                                           const std::string& set) {
  RLHF_RETURN_IF_ERROR(CheckName("project", project));
  RLHF_RETURN_IF_ERROR(CheckFreeAlias("set", set));
  const std::string key = absl::StrCat(project, "/", set);
  if (!busy_.insert(key).second) {
    return WithRetryDelay(absl::AbortedError(absl::StrCat("another import into \"", set, "\" is running; try again")),
                          absl::Seconds(2));
  }
  const auto prepare = [&]() -> absl::StatusOr<ImportSession::Start> {
    ImportSession::Start start;
    start.project = project;
    start.name = set;
    RLHF_ASSIGN_OR_RETURN(const v1::PayloadRef end, LogEnd(project, set));
    start.log_path = LogPath(project, set, end.segment());
    start.log_length = end.offset();
    Artifacts::Staging staging = artifacts_->NewStaging();
    start.staging = std::move(staging.path);
    start.make_staging = std::move(staging.make);
    // What was published last is the log's content, unless a rater was forgotten since; then it is written anew.
    const std::vector<v1::ComparisonSet> before = feedback_->sets().List(project, set);
    if (start.log_length > 0 && !before.empty() && !before.back().forgotten()) {
      start.previous = before.back();
      start.find_previous = artifacts_->Locate(before.back().digest());
    }
    return start;
  };
  absl::StatusOr<ImportSession::Start> start = prepare();
  if (!start.ok()) {
    busy_.erase(key);
    return start.status();
  }
  return std::make_shared<ImportSession>(*std::move(start));
}

void ComparisonSets::AbandonImport(const ImportSession& session) {
  busy_.erase(absl::StrCat(session.start().project, "/", session.start().name));
}

void ComparisonSets::EndImport(const std::string& subject, std::shared_ptr<ImportSession> session,
                               Done<v1::ImportComparisonsResponse> done) {
  auto finish = [this, session, done = std::move(done)](absl::StatusOr<v1::ComparisonSet> set) mutable {
    AbandonImport(*session);
    if (!set.ok()) return done(set.status());
    *session->response().mutable_set() = *std::move(set);
    done(session->response());
  };
  v1::ComparisonSet set = session->response().set();
  set.set_project(session->start().project);
  set.set_name(session->start().name);
  if (set.comparisons() == 0) return finish(std::move(set));  // nothing but problems: there is no set yet
  const std::vector<v1::ComparisonSet> before = feedback_->sets().List(set.project(), set.name());
  if (session->response().imported() == 0 && !before.empty() && !before.back().forgotten())
    return finish(before.back());  // nothing new: what was published before stands
  absl::StatusOr<v1::PayloadRef> end = LogEnd(set.project(), set.name());
  if (!end.ok()) return finish(end.status());
  end->set_offset(session->log_length());
  Publish(subject, "comparisons.import", session->start().staging, std::move(set), &*end, std::move(finish));
}

void ComparisonSets::Publish(const std::string& subject, const std::string& action, const std::string& staging,
                             v1::ComparisonSet set, const v1::PayloadRef* log_end, Done<v1::ComparisonSet> done) {
  const std::string project = set.project();
  std::string log_row = log_end == nullptr ? "" : log_end->SerializeAsString();
  artifacts_->PublishDirectory(
      staging, "data", project, subject,
      [this, subject, action, set = std::move(set), log_row = std::move(log_row),
       done = std::move(done)](absl::StatusOr<v1::Artifact> made) mutable {
        if (!made.ok()) return done(made.status());
        set.set_digest(made->digest());
        set.set_made_by(subject);
        *set.mutable_created_at() = ToTimestamp(loop_->clock().WallNow());
        WriteBatch batch;
        feedback_->sets().Add(&set, &batch);
        if (!log_row.empty()) batch.Put(Table::kMeta, ImportLogKey(set.project(), set.name()), log_row);
        oversight_->Audit(subject, action, absl::StrCat(set.project(), "/", set.name()), "done",
                          {{"artifact", set.digest()},
                           {"version", absl::StrCat(set.version())},
                           {"comparisons", absl::StrCat(set.comparisons())},
                           {"content_sha256", set.content_sha256()},
                           {"excluded_raters", absl::StrJoin(set.excluded_raters(), ",")}},
                          &batch);
        store_->Commit(
            std::move(batch), [this, set = std::move(set), done = std::move(done)](absl::Status status) mutable {
              loop_->Post([this, status, set = std::move(set), done = std::move(done)]() mutable {
                if (!status.ok()) return done(status);
                v1::SetAliasRequest alias;
                alias.set_digest(set.digest());
                alias.set_project(set.project());
                alias.set_alias(set.name());
                artifacts_->SetAlias(
                    alias, nullptr,
                    [set = std::move(set), done = std::move(done)](absl::StatusOr<v1::Artifact> named) mutable {
                      if (!named.ok()) return done(named.status());
                      done(std::move(set));
                    });
              });
            });
      });
}

absl::StatusOr<std::unique_ptr<ImportLogReader>> ComparisonSets::Read(const std::string& project,
                                                                      const std::string& set) const {
  RLHF_ASSIGN_OR_RETURN(const v1::PayloadRef end, LogEnd(project, set));
  if (end.offset() == 0) return absl::NotFoundError(absl::StrCat("no comparisons were imported as \"", set, "\""));
  return ImportLogReader::Open(LogPath(project, set, end.segment()), end.offset());
}

absl::StatusOr<std::vector<v1::Comparison>> ComparisonSets::ReadAll(const std::string& project,
                                                                    const std::string& set) const {
  RLHF_ASSIGN_OR_RETURN(const auto reader, Read(project, set));
  std::vector<v1::Comparison> all;
  while (true) {
    RLHF_ASSIGN_OR_RETURN(const bool more, reader->Next(&all.emplace_back()));
    if (more) continue;
    all.pop_back();
    return all;
  }
}

void ComparisonSets::Freeze(const std::string& subject, const v1::FreezeSetRequest& request,
                            std::shared_ptr<const std::vector<v1::Comparison>> comparisons,
                            std::set<std::string> excluded, Done<v1::ComparisonSet> done) {
  absl::Status status = CheckName("project", request.project());
  if (status.ok()) status = CheckFreeAlias("name", request.name());
  if (status.ok() && request.edits_as_sft() && request.pair_ratings())
    status = absl::InvalidArgumentError("pair_ratings: expected false with edits_as_sft: ratings make comparisons");
  if (!status.ok()) return done(status);
  const absl::StatusOr<v1::PayloadRef> log = LogEnd(request.project(), request.name());
  if (!log.ok()) return done(log.status());
  if (log->offset() > 0) {
    return done(absl::FailedPreconditionError(
        absl::StrCat("name: \"", request.name(), "\" is a set that is imported into; freeze under another name")));
  }
  background_->Run([this, subject, request, comparisons, excluded = std::move(excluded),
                    folder = artifacts_->NewStaging(), done = std::move(done)]() mutable {
    const std::string staging = folder.path;
    if (absl::Status made = folder.make(); !made.ok())
      return loop_->Post([made = std::move(made), done = std::move(done)]() mutable { done(made); });
    const bool sft = request.edits_as_sft();
    std::ofstream out(absl::StrCat(staging, sft ? "/edits.jsonl" : "/comparisons.jsonl"), std::ios::binary);
    SetBuilder builder(&out, excluded, sft ? SetBuilder::Kind::kSft : SetBuilder::Kind::kComparisons,
                       request.pair_ratings());
    for (const v1::Comparison& comparison : *comparisons) builder.Add(comparison);
    v1::ComparisonSet set = builder.Finish();
    out.close();
    const bool good = out.good();
    set.set_project(request.project());
    set.set_name(request.name());
    loop_->Post([this, subject, staging, good, sft, set = std::move(set), done = std::move(done)]() mutable {
      if (!good) {
        return done(WithReason(
            absl::UnavailableError(absl::StrCat("cannot write to ", staging, ": is its volume full or read-only?")),
            v1::STORE_UNAVAILABLE));
      }
      if (set.comparisons() == 0) {
        return done(absl::FailedPreconditionError(absl::StrCat("nothing is left to freeze: expected at least one ",
                                                               sft ? "edit" : "comparison of two answers")));
      }
      Publish(subject, "comparisons.freeze", staging, std::move(set), nullptr, std::move(done));
    });
  });
}

// A rater, and the imported sets in which they were not looked for yet.
struct ComparisonSets::Forgetting {
  std::string subject, rater;
  std::vector<ImportLogRow> left;
  Done<int64_t> done;
  int64_t removed = 0;
  absl::Status failed;  // the first
};

void ComparisonSets::Forget(const std::string& subject, const std::string& rater, Done<int64_t> done) {
  absl::StatusOr<std::vector<ImportLogRow>> logs = ListImportLogs(store_);
  if (!logs.ok()) return done(logs.status());
  ForgetNext(std::make_shared<Forgetting>(Forgetting{subject, rater, *std::move(logs), std::move(done)}));
}

void ComparisonSets::ForgetNextAfter(std::shared_ptr<Forgetting> forgetting, const std::string& key,
                                     const absl::Status& status) {
  if (!status.ok() && forgetting->failed.ok()) {
    forgetting->failed =
        Annotate(status, absl::StrCat("set ", key, " is not rid of ", forgetting->rater,
                                      "; once this is mended, forgetting them again does what is left"));
  }
  ForgetNext(std::move(forgetting));
}

void ComparisonSets::ForgetNext(std::shared_ptr<Forgetting> forgetting) {
  if (forgetting->left.empty()) {
    return forgetting->failed.ok() ? forgetting->done(forgetting->removed) : forgetting->done(forgetting->failed);
  }
  const std::string project = forgetting->left.back().project, set = forgetting->left.back().set;
  forgetting->left.pop_back();
  const std::string key = absl::StrCat(project, "/", set);
  const absl::StatusOr<v1::PayloadRef> end = LogEnd(project, set);
  if (!end.ok()) return ForgetNextAfter(std::move(forgetting), key, end.status());
  if (!busy_.insert(key).second)
    return ForgetNextAfter(std::move(forgetting), key, absl::AbortedError("an import into it is running"));
  background_->Run([this, forgetting, key, project, set, end = *end] {
    const std::string from = LogPath(project, set, end.segment()), to = LogPath(project, set, end.segment() + 1);
    using Rewritten = std::pair<v1::PayloadRef, int64_t>;
    absl::StatusOr<Rewritten> rewritten = Rewritten(end, 0);
    if (end.offset() > 0) rewritten = Rewrite(from, to, end, forgetting->rater);
    loop_->Post([this, forgetting, key, project, set, from, rewritten = std::move(rewritten)] {
      if (!rewritten.ok()) {
        busy_.erase(key);
        return ForgetNextAfter(forgetting, key, rewritten.status());
      }
      const auto& [log_end, removed] = *rewritten;
      if (removed == 0) {
        busy_.erase(key);
        // An earlier call may have come no further than the log.
        return AwaitsPublishing(project, set) ? PublishWithout(forgetting, project, set) : ForgetNext(forgetting);
      }
      WriteBatch batch;
      batch.Put(Table::kMeta, ImportLogKey(project, set), log_end.SerializeAsString());
      oversight_->Audit(forgetting->subject, "comparisons.forget", key, "done",
                        {{"rater", forgetting->rater}, {"removed", absl::StrCat(removed)}}, &batch);
      store_->Commit(std::move(batch),
                     [this, forgetting, key, project, set, from, removed = removed](absl::Status status) {
                       if (status.ok()) std::remove(from.c_str());
                       loop_->Post([this, forgetting, key, project, set, removed, status] {
                         busy_.erase(key);
                         if (!status.ok()) return ForgetNextAfter(forgetting, key, status);
                         forgetting->removed += removed;
                         PublishWithout(forgetting, project, set);
                       });
                     });
    });
  });
}

bool ComparisonSets::AwaitsPublishing(const std::string& project, const std::string& set) const {
  const std::vector<v1::ComparisonSet> versions = feedback_->sets().List(project, set);
  return !versions.empty() && versions.back().forgotten();
}

void ComparisonSets::PublishWithout(std::shared_ptr<Forgetting> forgetting, const std::string& project,
                                    const std::string& set) {
  const std::string key = absl::StrCat(project, "/", set);
  const absl::StatusOr<std::shared_ptr<ImportSession>> begun = BeginImport(project, set);
  if (!begun.ok()) return ForgetNextAfter(std::move(forgetting), key, begun.status());
  background_->Run([this, forgetting, key, session = *begun] {
    absl::Status written = session->Begin();
    if (written.ok()) written = session->Finish();
    loop_->Post([this, forgetting, key, session, written] {
      const auto next = [this, forgetting, key](const absl::Status& status) {
        ForgetNextAfter(forgetting, key, status);
      };
      if (!written.ok() || session->response().set().comparisons() == 0) AbandonImport(*session);
      if (!written.ok()) return next(written);
      if (session->response().set().comparisons() == 0)
        return TakeNameAway(forgetting->subject, session->start().project, session->start().name, next);
      EndImport("coordinator", session,
                [next](const absl::StatusOr<v1::ImportComparisonsResponse>& published) { next(published.status()); });
    });
  });
}

void ComparisonSets::TakeNameAway(const std::string& subject, const std::string& project, const std::string& set,
                                  absl::AnyInvocable<void(absl::Status)> done) {
  const absl::StatusOr<v1::Artifact> named = artifacts_->Resolve(set, project);
  const std::vector<v1::ComparisonSet> versions = feedback_->sets().List(project, set);
  const bool a_version = named.ok() && std::any_of(versions.begin(), versions.end(), [&](const auto& version) {
                           return version.digest() == named->digest();
                         });
  if (!a_version) return done(absl::OkStatus());  // the name is gone already, or was given to something else
  v1::SetAliasRequest alias;
  alias.set_project(project);
  alias.set_alias(set);
  alias.set_remove(true);
  artifacts_->SetAlias(
      alias,
      [this, subject](const std::string& action, const std::string& object,
                      const std::map<std::string, std::string>& details,
                      WriteBatch* batch) { oversight_->Audit(subject, action, object, "done", details, batch); },
      [done = std::move(done)](const absl::StatusOr<v1::Artifact>& removed) mutable { done(removed.status()); });
}

}  // namespace rlhf::coordinator
