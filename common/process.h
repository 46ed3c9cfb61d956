// What every main() shares: signals, and the ports file by which a parent learns what was bound.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace rlhf {

// Call first in main: blocks SIGTERM and SIGINT in all threads, ignores SIGPIPE, raises the limit of open descriptors
// to 65536 or as far as it may be (container runtimes start with 1024, a connection is one), and ends Abseil's search
// for lock cycles at each lock, which Debian's build of it has on (6 % of a loaded coordinator). Programs of tests do
// not call it, and search.
void BeginProcess();
// Waits for SIGTERM or SIGINT, or until `done` returns true (polled every 50 ms). Returns the signal, 0 for done.
int WaitForTermination(const std::function<bool()>& done);
// The same without waiting: a signal that has come (taken, it is reported once), 0 for none.
int TakeTerminationSignal();
// Durably writes {"pid":…, name: port…} as JSON; for --ports-file.
absl::Status WritePortsFile(const std::string& path, const std::map<std::string, int>& ports);

inline constexpr const char kBuildVersion[] = "0.1.0";  // the project's version in CMakeLists.txt
inline constexpr unsigned kProtocolVersion = 2;         // 2: checkpoints on request (CommitStepResponse.checkpoint)
// What --version prints: "rlhf-learner 0.1.0, protocol 2".
std::string VersionLine(const std::string& program);

}  // namespace rlhf
