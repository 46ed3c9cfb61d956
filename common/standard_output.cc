#include "common/standard_output.h"

#include <cerrno>
#include <cstdio>
#include <iostream>

#include "common/durable_file.h"

namespace rlhf {

absl::Status FlushStandardOutput() {
  errno = 0;
  const bool streamed = static_cast<bool>(std::cout.flush());
  const bool flushed = std::fflush(stdout) == 0;
  if (streamed && flushed && std::ferror(stdout) == 0) return absl::OkStatus();
  // The reason of an earlier failure is gone when this flush has nothing left to write.
  return WriteError(errno != 0 ? errno : EIO, "write", "the standard output");
}

}  // namespace rlhf
