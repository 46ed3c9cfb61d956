// A real coordinator as a child process, and what the kernel says of it. Killed when the object goes away.
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/tls.h"

namespace rlhf::bench {

struct ProcessUsage {
  double cpu_seconds = 0;
  double resident_mb = 0, peak_mb = 0;
};
absl::StatusOr<ProcessUsage> UsageOf(pid_t pid);

class CoordinatorProcess {
 public:
  struct Options {
    std::string binary;  // empty: rlhf-coordinator beside this program
    std::string dir;     // artifacts, tokens and the log go here
    std::string data_dir;
    TlsFiles tls;
    std::string name = "coordinator";  // of its log and its ports file
    std::vector<std::string> flags;    // more
  };
  // Blocks until it says that it is ready, at most 60 s.
  static absl::StatusOr<std::unique_ptr<CoordinatorProcess>> Start(const Options& options);
  // Does not wait: one that stands by is ready once it leads.
  static absl::StatusOr<std::unique_ptr<CoordinatorProcess>> Spawn(const Options& options);
  // Unavailable when it has ended, DeadlineExceeded.
  absl::Status WaitReady(absl::Duration patience);
  ~CoordinatorProcess();
  pid_t pid() const { return pid_; }
  std::string address(const std::string& listener) const;  // "fleet", "api", "http"
  std::string token(const std::string& role) const;        // empty without tokens
  absl::Duration ready_after() const { return ready_after_; }
  void Signal(int signal_number);
  int Wait();                                            // its exit code, or −signal
  absl::StatusOr<int> WaitFor(absl::Duration patience);  // the same; DeadlineExceeded while it lives

 private:
  explicit CoordinatorProcess(const Options& options) : options_(options), started_(absl::Now()) {}
  std::string ports_file() const { return options_.dir + "/" + options_.name + ".ports.json"; }
  std::string log_file() const { return options_.dir + "/" + options_.name + ".log"; }
  const Options options_;
  const absl::Time started_;
  pid_t pid_ = -1;
  std::map<std::string, int> ports_;
  std::map<std::string, std::string> tokens_;
  absl::Duration ready_after_;
};

}  // namespace rlhf::bench
