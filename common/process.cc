#include "common/process.h"

#include <signal.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/build_version.h"
#include "common/durable_file.h"

namespace rlhf {
namespace {

sigset_t TerminationSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

// What the packages' units ask for.
constexpr rlim_t kDescriptors = 65536;

// The low limit that programs are started with is for those that use select(), which nothing here does.
void RaiseDescriptors() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t wanted = std::min(kDescriptors, limit.rlim_max);
  if (limit.rlim_cur >= wanted) return;
  limit.rlim_cur = wanted;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

void BeginProcess() {
  RaiseDescriptors();
  const sigset_t set = TerminationSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
}

int WaitForTermination(const std::function<bool()>& done) {
  const sigset_t set = TerminationSignals();
  const timespec poll{.tv_sec = 0, .tv_nsec = 50'000'000};
  while (true) {
    if (done && done()) return 0;
    const int signal_number = sigtimedwait(&set, nullptr, &poll);
    if (signal_number > 0) return signal_number;
  }
}

int TakeTerminationSignal() {
  const sigset_t set = TerminationSignals();
  const timespec at_once{.tv_sec = 0, .tv_nsec = 0};
  return std::max(0, sigtimedwait(&set, nullptr, &at_once));
}

absl::Status WritePortsFile(const std::string& path, const std::map<std::string, int>& ports) {
  nlohmann::json content;
  content["pid"] = getpid();
  for (const auto& [name, port] : ports) content[name] = port;
  return WriteFileDurably(path, absl::StrCat(content.dump(), "\n"));
}

std::string VersionLine(const std::string& program) {
  return absl::StrCat(program, " ", BuildVersion(), ", protocol ", kProtocolVersion);
}

}  // namespace rlhf
