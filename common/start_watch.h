// The start of a process whose folders may be on a volume that hangs, as an NFS server's does that is away: its main
// thread then waits in a call and asks for no signals, so nobody could stop it, or knew what it waits for.
#pragma once

#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace rlhf {

// While it lives SIGTERM and SIGINT end the process at once with code 0 (no destructor runs), and what takes longer
// than `says_after` is said in the log. After it: WaitForTermination. Thread-safe.
class StartWatch {
 public:
  static constexpr absl::Duration kSaysAfter = absl::Seconds(5);
  explicit StartWatch(absl::Duration says_after = kSaysAfter);
  ~StartWatch();
  StartWatch(const StartWatch&) = delete;
  StartWatch& operator=(const StartWatch&) = delete;

  // What comes next, for people: a folder with the flag that names it.
  void Next(std::string what);

 private:
  void Run();

  const absl::Duration says_after_;
  absl::Mutex mu_;
  std::string what_ ABSL_GUARDED_BY(mu_);
  absl::Duration since_ ABSL_GUARDED_BY(mu_);  // of the monotonic clock
  bool said_ ABSL_GUARDED_BY(mu_) = false;
  absl::Notification over_;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace rlhf
