// Runs a shell command and takes what it says.
#pragma once

#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace rlhf {

struct CommandResult {
  int code = -1;
  std::string output;  // standard output and standard error
};
inline CommandResult RunCommand(const std::string& command) {
  CommandResult result;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return result;
  char buffer[4096];
  size_t n;
  while ((n = fread(buffer, 1, sizeof(buffer), pipe)) > 0) result.output.append(buffer, n);
  const int status = pclose(pipe);
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return result;
}
inline std::string BinDir() {
  const char* dir = std::getenv("RLHF_BIN_DIR");
  return dir == nullptr ? "build/release/bin" : dir;
}

}  // namespace rlhf
