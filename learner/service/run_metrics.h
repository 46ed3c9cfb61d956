// The learner's metrics: of the newest step of the job it trains, and of its checkpoints and collectives. Thread-safe.
//
// Series of a job carry its project and name, come from rank 0 only, and go 15 minutes after the job has left this
// process or when another one begins.
#pragma once

#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "rlhf/v1/learner_service.pb.h"

namespace rlhf::learner {

class RunMetrics {
 public:
  // `registry` outlives this, and nothing scrapes it any more when this is gone.
  explicit RunMetrics(MetricsRegistry* registry);

  // A group was joined, or (with none) left.
  void Joined(const v1::GroupAssignment& group);
  void Left();
  // The trainer's values of a committed step ("kl", "loss/policy", …).
  void Committed(const std::map<std::string, double>& values);
  void Refused();
  void Checkpointed(absl::Duration took, bool durable);
  void AllReduced(absl::Duration took);

 private:
  void Drop() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SetOfJob(const std::string& name, const std::string& help, double value,
                const MetricsRegistry::Labels& more = {}) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  MetricsRegistry* const registry_;
  absl::Mutex mu_;
  MetricsRegistry::Labels job_ ABSL_GUARDED_BY(mu_);  // empty: none, or another rank than 0
  absl::Time left_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
};

}  // namespace rlhf::learner
