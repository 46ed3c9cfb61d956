// A real coordinator as a child process, and what the kernel says of it. Killed when the object goes away.
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
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
  };
  // Blocks until it says that it is ready, at most 60 s.
  static absl::StatusOr<std::unique_ptr<CoordinatorProcess>> Start(const Options& options);
  ~CoordinatorProcess();
  pid_t pid() const { return pid_; }
  std::string address(const std::string& listener) const;  // "fleet", "api", "http"
  std::string token(const std::string& role) const;        // empty without tokens
  absl::Duration ready_after() const { return ready_after_; }
  void Signal(int signal_number);
  int Wait();  // its exit code, or −signal

 private:
  CoordinatorProcess() = default;
  pid_t pid_ = -1;
  std::map<std::string, int> ports_;
  std::map<std::string, std::string> tokens_;
  absl::Duration ready_after_;
};

}  // namespace rlhf::bench
