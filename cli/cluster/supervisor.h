// Starts processes, keeps their logs, starts again those that end when they should not, and stops them all in order.
//
// Not thread-safe: one thread calls Tick about ten times a second.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace rlhf::cli {

struct ProcessSpec {
  std::string name;  // also the log's file name
  std::vector<std::string> command;
  std::vector<std::pair<std::string, std::string>> environment;  // added to ours
  std::string log_file;                                          // empty: our own output
};

class Supervisor {
 public:
  ~Supervisor();
  absl::Status Start(const ProcessSpec& spec);
  // Restarts what ended (after 1 s, doubling to 30 s when it ends within 10 s of its start). `restarted` is told name
  // and how it ended.
  void Tick(const std::function<void(const std::string& name, const std::string& how)>& restarted);
  // SIGTERM to the last started first; SIGKILL to what is left after the grace.
  void StopAll(absl::Duration grace);

 private:
  struct Child {
    ProcessSpec spec;
    pid_t pid = -1;
    absl::Time started, restart_at;
    absl::Duration backoff = absl::Seconds(1);
  };
  static absl::Status Spawn(Child& child);
  std::vector<Child> children_;
};

}  // namespace rlhf::cli
