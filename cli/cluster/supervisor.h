// Starts processes, keeps their logs, starts again those that end when they should not or hang, and stops them all in
// order.
//
// Not thread-safe: one thread calls Tick about ten times a second.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cli/cluster/health_watch.h"
#include "cli/cluster/output_lines.h"

namespace rlhf::cli {

struct ProcessSpec {
  std::string name;  // also the log's file name
  std::vector<std::string> command;
  std::vector<std::pair<std::string, std::string>> environment;  // added to ours
  std::string log_file;                                          // empty: our own output
  OutputLines* lines = nullptr;  // instead of both: its output goes there; outlives the supervisor
  int health_port = 0;           // where its /healthz is asked, on 127.0.0.1; 0: nowhere
};

class Supervisor {
 public:
  // Every process with a health_port is asked `health_every` so often; one that says three times in a row that it
  // hangs, or does not answer twelve times, is killed, and so starts again.
  explicit Supervisor(absl::Duration first_backoff = absl::Seconds(1), absl::Duration last_backoff = absl::Seconds(30),
                      absl::Duration health_every = absl::Seconds(10))
      : first_backoff_(first_backoff), last_backoff_(last_backoff), health_(health_every) {}
  ~Supervisor();
  absl::Status Start(const ProcessSpec& spec);
  // Restarts what ended, but by an exit code that says that the command is wrong (after the first backoff, doubling to
  // the last when it ends within 10 s of its start). `restarted` is told name and how it ended.
  void Tick(const std::function<void(const std::string& name, const std::string& how)>& restarted);
  // "NAME ended (exit code 2): REASON" of the first process that is not started again, because the same command would
  // end so again: a usage error (2), or a program that cannot be run (126, 127). Empty while there is none.
  const std::string& Hopeless() const { return hopeless_; }
  // SIGTERM to the last started first; SIGKILL to what is left after the grace.
  void StopAll(absl::Duration grace);
  // Who hangs now, for people; empty: nobody (any thread).
  std::string Hanging() const;

 private:
  struct Child {
    ProcessSpec spec;
    pid_t pid = -1;
    absl::Duration started, restart_at;  // of the monotonic clock
    absl::Duration backoff;
    std::string hung;  // why it was killed
  };
  void KillHanging();
  static absl::Status Spawn(Child& child);
  const absl::Duration first_backoff_, last_backoff_;
  std::vector<Child> children_;
  HealthWatch health_;
  std::string hopeless_;
};

// What a process said last, for the end of a message: ": LAST LINE; see LOG", or "" where it has no log of its own.
std::string LastWords(const std::string& log_file);

}  // namespace rlhf::cli
