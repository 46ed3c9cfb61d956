// Comparisons that were made elsewhere, and frozen sets of those made here: kept under a name, and published as a data
// artifact under that name, so that a reward-model job can name it. Loop thread only; the file work is done in the
// background.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "coordinator/artifacts.h"
#include "coordinator/event_loop.h"
#include "coordinator/feedback.h"
#include "coordinator/feedback/import_log.h"
#include "coordinator/feedback/import_session.h"
#include "coordinator/oversight.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/feedback_service.pb.h"

namespace rlhf::coordinator {

class ComparisonSets {
 public:
  ComparisonSets(EventLoop* loop, Background* background, StateStore* store, Artifacts* artifacts, Oversight* oversight,
                 Feedback* feedback, std::string data_dir)
      : loop_(loop),
        background_(background),
        store_(store),
        artifacts_(artifacts),
        oversight_(oversight),
        feedback_(feedback),
        data_dir_(std::move(data_dir)) {}

  // An import: begun here, fed by the caller in the background, then ended, by one call or the other. A comparison
  // without id gets one from its content; one whose id is there is a duplicate; a bad one is a problem and keeps nobody
  // else out. Aborted while another import into the set runs.
  absl::StatusOr<std::shared_ptr<ImportSession>> BeginImport(const std::string& project, const std::string& set);
  // Makes it count and moves the alias `set` of the project to the grown set.
  void EndImport(const std::string& subject, std::shared_ptr<ImportSession> session,
                 Done<v1::ImportComparisonsResponse> done);
  void AbandonImport(const ImportSession& session);

  absl::StatusOr<std::unique_ptr<ImportLogReader>> Read(const std::string& project, const std::string& set) const;
  absl::StatusOr<std::vector<v1::Comparison>> ReadAll(const std::string& project, const std::string& set) const;

  // A new version of the set `request.name` from comparisons read before.
  void Freeze(const std::string& subject, const v1::FreezeSetRequest& request,
              std::shared_ptr<const std::vector<v1::Comparison>> comparisons, std::set<std::string> excluded,
              Done<v1::ComparisonSet> done);

  // Rewrites the logs of imported sets without the rater, each with an audit record of how many comparisons went, and
  // publishes these sets again, or takes the name away from one that has nothing left. Returns how many went. A set
  // that fails keeps no other from it; the error then names the first one, and a second call does what is left.
  void Forget(const std::string& subject, const std::string& rater, Done<int64_t> done);

 private:
  std::string LogPath(const std::string& project, const std::string& set, uint32_t generation) const;
  absl::StatusOr<v1::PayloadRef> LogEnd(const std::string& project, const std::string& set) const;
  // Publishes the folder; then numbers the set, moves its log's end (if it has one) and audits, in one transaction.
  void Publish(const std::string& subject, const std::string& action, const std::string& staging, v1::ComparisonSet set,
               const v1::PayloadRef* log_end, Done<v1::ComparisonSet> done);
  struct Forgetting;
  // Rewrites the log of the next set; when the rater was in it, publishes the set again without them.
  void ForgetNext(std::shared_ptr<Forgetting> forgetting);
  void ForgetNextAfter(std::shared_ptr<Forgetting> forgetting, const std::string& key, const absl::Status& status);
  // Whether what was published last under the set's name has a forgotten rater's answers.
  bool AwaitsPublishing(const std::string& project, const std::string& set) const;
  void PublishWithout(std::shared_ptr<Forgetting> forgetting, const std::string& project, const std::string& set);
  // Of a set that has nothing left.
  void TakeNameAway(const std::string& subject, const std::string& project, const std::string& set,
                    absl::AnyInvocable<void(absl::Status)> done);

  EventLoop* const loop_;
  Background* const background_;
  StateStore* const store_;
  Artifacts* const artifacts_;
  Oversight* const oversight_;
  Feedback* const feedback_;
  const std::string data_dir_;
  std::set<std::string> busy_;  // "project/set" being imported to
};

}  // namespace rlhf::coordinator
