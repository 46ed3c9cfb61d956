// What the adapters share: the managers behind them, who may see which job, and how calls that wait are ended on
// shutdown.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/job_state.h"
#include "common/metrics.h"
#include "common/rpc_server.h"
#include "coordinator/artifacts.h"
#include "coordinator/auth/denials.h"
#include "coordinator/auth/tokens.h"
#include "coordinator/event_log.h"
#include "coordinator/event_loop.h"
#include "coordinator/feedback.h"
#include "coordinator/fleet.h"
#include "coordinator/jobs.h"
#include "coordinator/learner_groups.h"
#include "coordinator/logs.h"
#include "coordinator/oversight.h"
#include "coordinator/quotas.h"
#include "coordinator/sampling.h"

namespace rlhf::coordinator {

// Long polls and streams that are open. Thread-safe.
class OpenCalls {
 public:
  // `end` is called by EndAll, on its thread; at once when EndAll was called before. Returns a handle for Remove.
  uint64_t Add(std::function<void()> end);
  void Remove(uint64_t handle);
  void EndAll();

 private:
  absl::Mutex mu_;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t next_ ABSL_GUARDED_BY(mu_) = 1;
  std::map<uint64_t, std::function<void()>> calls_ ABSL_GUARDED_BY(mu_);
};

// Nothing here is owned; everything outlives the adapters. All managers are for the loop thread.
struct Edge {
  EventLoop* loop = nullptr;
  Background* background = nullptr;  // nothing here or below touches the artifacts' volume, which may hang, but these:
  Background* transfers = nullptr;   // what is uploaded, downloaded and imported
  Background* artifact_work = nullptr;  // what is hashed and made
  Background* batches = nullptr;        // short work on learners' batches: never behind an artifact that is hashed
  Background* pages = nullptr;          // what people look at, page by page: behind nothing that takes minutes
  Background* checks = nullptr;         // the audit log and ledgers, read from end to end
  StateStore* store = nullptr;
  Fleet* fleet = nullptr;
  Sampling* sampling = nullptr;
  LearnerGroups* groups = nullptr;
  Jobs* jobs = nullptr;
  EventLog* events = nullptr;
  Feedback* feedback = nullptr;
  Oversight* oversight = nullptr;
  Artifacts* artifacts = nullptr;
  Logs* logs = nullptr;
  Tokens* tokens = nullptr;
  Denials* denials = nullptr;
  MetricsRegistry* metrics = nullptr;
  OpenCalls* open_calls = nullptr;
  Quotas* quotas = nullptr;
  std::string data_dir;
  bool insecure = false;        // nobody is asked for a token
  uint64_t min_free_bytes = 0;  // of data_dir's volume, that a backup has to leave

  // CheckProject, with the refusal noted.
  absl::Status Admit(const Caller& caller, const std::string& project) const;
  // `caller` outlives what is returned.
  static Sees SeenBy(const Caller& caller);
  // What the caller means when a request names no project.
  static std::string ProjectFor(const Caller& caller, const std::string& requested);
  // By id or by name; UNKNOWN_JOB, or PROJECT_NOT_ALLOWED.
  absl::StatusOr<v1::Job> FindJob(const Caller& caller, const std::string& id_or_name,
                                  const std::string& project) const;
  // The session is known and is the caller's own. UNKNOWN_SESSION: register again.
  absl::Status CheckSession(const Caller& caller, const std::string& session_id) const;
};

// 0 means 100; more than 1000 is InvalidArgument.
absl::StatusOr<int> PageSize(const v1::PageRequest& page);
// Waits are at most 10 s, and never negative.
int32_t BoundedWaitMs(int32_t wait_ms);

}  // namespace rlhf::coordinator
