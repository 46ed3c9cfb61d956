// Which of some processes of this machine hang: their /healthz says that they should be started again, or their port
// takes a connection and nothing answers. One that is not there (yet) does not hang.
//
// Thread-safe. Runs one thread, and one a process while it asks.
#pragma once

#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace rlhf::cli {

class HealthWatch {
 public:
  // Each is asked `every` so often, and has five seconds to answer.
  explicit HealthWatch(absl::Duration every);
  ~HealthWatch();
  void Watch(const std::string& name, int port);
  // Another process has its name now.
  void Forget(const std::string& name);
  struct Hanging {
    std::string name, why;
    int times = 0;          // in a row
    bool own_word = false;  // it says so; else nothing answers, which may be a busy port of a process that works
  };
  std::vector<Hanging> hanging() const;

 private:
  struct Watched {
    int port = 0;
    Hanging state;
    int64_t life = 0;  // grows with Forget: an answer of the process before is none of this one
  };
  void Run();

  const absl::Duration every_;
  mutable absl::Mutex mu_;
  std::vector<Watched> watched_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace rlhf::cli
