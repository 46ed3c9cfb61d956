// Calls that were refused: each is counted, and recorded in the audit chain at a bounded rate. Thread-safe, never
// blocks.
#pragma once

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "coordinator/event_loop.h"
#include "coordinator/oversight.h"

namespace rlhf::coordinator {

class Denials {
 public:
  // At most `burst` records at once, and one a second in the long run; what was left out is counted in the next record.
  Denials(EventLoop* loop, Oversight* oversight, StateStore* store, MetricsRegistry* metrics, int burst = 20)
      : loop_(loop), oversight_(oversight), store_(store), metrics_(metrics), burst_(burst), tokens_(burst) {}
  // `reason` labels rlhf_auth_failures_total and must be one of a small fixed set.
  void Note(const std::string& subject, const std::string& method, const std::string& reason);

 private:
  EventLoop* const loop_;
  Oversight* const oversight_;
  StateStore* const store_;
  MetricsRegistry* const metrics_;
  const double burst_;
  absl::Mutex mu_;
  double tokens_ ABSL_GUARDED_BY(mu_);
  absl::Duration refilled_ ABSL_GUARDED_BY(mu_) = absl::ZeroDuration();
  int64_t left_out_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace rlhf::coordinator
