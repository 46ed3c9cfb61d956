// Output of several processes on one stream, whole lines, each behind its process's name: "learner-0 | …".
//
// Thread-safe. Runs one thread. Who writes faster than the stream takes it waits, as with the stream itself.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace rlhf::cli {

class OutputLines {
 public:
  // Not owned; stays open.
  static absl::StatusOr<std::unique_ptr<OutputLines>> To(int fd);
  // Passes on what was written by then.
  virtual ~OutputLines() = default;
  // The end to write to, for one process; the caller closes it, or it closes with execve.
  virtual absl::StatusOr<int> Open(const std::string& name) = 0;
};

}  // namespace rlhf::cli
