// Calls that were refused: each is counted, and recorded in the audit chain at a bounded rate. Thread-safe, never
// blocks.
#pragma once

#include <cstdint>
#include <map>
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
  // Of each subject at most `burst` records at once, and one a second in the long run; what was left out is counted in
  // the subject's next record. Callers without a name are one subject: however many calls strangers make, what
  // somebody with a token tried is recorded.
  Denials(EventLoop* loop, Oversight* oversight, StateStore* store, MetricsRegistry* metrics, int burst = 20)
      : loop_(loop), oversight_(oversight), store_(store), metrics_(metrics), burst_(burst) {}
  // `subject` is of a token or a certificate that is good, or empty. `reason` labels rlhf_auth_failures_total and must
  // be one of a small fixed set.
  void Note(const std::string& subject, const std::string& method, const std::string& reason);
  // A handshake that the fleet's listener refused, which the listener has counted. The first is recorded at once, those
  // of each minute after it in one record with their number: at most one record a minute and reason, of which there
  // must be few.
  void NoteHandshake(const std::string& reason);

 private:
  struct Handshakes {
    int64_t unrecorded = 0;
    bool due = false;  // RecordHandshakes will run
  };
  struct Bucket {
    double tokens = 0;
    absl::Duration refilled;
    int64_t left_out = 0;
  };
  Bucket& BucketOf(const std::string& subject, absl::Duration now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RecordHandshakes(const std::string& reason);  // on the loop
  void Record(const std::string& subject, const std::string& action, const std::string& object,
              const std::map<std::string, std::string>& details);  // on the loop

  EventLoop* const loop_;
  Oversight* const oversight_;
  StateStore* const store_;
  MetricsRegistry* const metrics_;
  const double burst_;
  absl::Mutex mu_;
  std::map<std::string, Bucket> buckets_ ABSL_GUARDED_BY(mu_);         // by subject
  std::map<std::string, Handshakes> handshakes_ ABSL_GUARDED_BY(mu_);  // by reason
};

}  // namespace rlhf::coordinator
