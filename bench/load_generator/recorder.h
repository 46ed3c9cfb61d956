// Latencies and counts of a run. Thread-safe.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace rlhf::bench {

class Recorder {
 public:
  struct Summary {
    int64_t calls = 0, failures = 0, items = 0;  // items: samples, in calls that carry several
    double p50_ms = 0, p90_ms = 0, p99_ms = 0, p999_ms = 0, max_ms = 0;
  };
  // Until Begin nothing is kept.
  void Begin();
  void End();
  void Add(const std::string& what, absl::Duration took, int64_t items);
  void Fail(const std::string& what, const std::string& why);
  std::map<std::string, Summary> Summaries() const;
  std::map<std::string, int64_t> Failures() const;  // by message

 private:
  struct Series {
    std::vector<float> milliseconds;
    int64_t failures = 0, items = 0;
  };
  mutable absl::Mutex mu_;
  bool on_ ABSL_GUARDED_BY(mu_) = false;
  std::map<std::string, Series> series_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, int64_t> failures_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rlhf::bench
