// Event files (event_file.h) that are written on a thread of its own: their folder may be on a volume that is slow or
// hangs, and no training waits for who looks on.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "learner/service/event_file.h"

namespace rlhf::learner {

// Thread-safe; nothing but the destructor blocks.
class EventLog {
 public:
  static constexpr size_t kMostWaiting = 4096;  // steps; of more the newest are left out, and the log says how many
  // As EventFile. An empty folder's name: nothing is ever written, and there is no thread.
  EventLog(std::string dir, std::string instance, size_t most_waiting = kMostWaiting);
  ~EventLog();  // once all that waits is written: a volume that hangs holds it
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;

  // As EventFile's, with the time of the call.
  void Begin(const std::string& job_id, int64_t next_step);
  void Step(int64_t step, const std::map<std::string, double>& metrics);
  void End();

 private:
  void Add(std::function<void()> write) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Due() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || !waiting_.empty(); }
  void Run();

  const size_t most_waiting_;
  EventFile file_;  // of the thread
  absl::Mutex mu_;
  std::deque<std::function<void()>> waiting_ ABSL_GUARDED_BY(mu_);
  int64_t left_out_ ABSL_GUARDED_BY(mu_) = 0;  // since the thread wrote last
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace rlhf::learner
