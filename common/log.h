// JSON-lines logging to stdout through spdlog; what a full pipe or a stopped terminal does not take is lost. Call
// InitLogging once in main.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include <spdlog/spdlog.h>

#include "absl/time/time.h"

namespace rlhf {

// level: "debug", "info", "warn", "error". Every line carries role and instance, and what it is about (LogScope).
void InitLogging(const std::string& role, const std::string& instance, const std::string& level, bool json);

// What a line is about. Empty or -1: not known, or not of one.
struct LogContext {
  std::string job_id = {};
  int64_t step = -1;
  std::string sample = {};  // "STEP/ORDINAL/INDEX"
  int64_t group_epoch = -1;
  std::string trace_id = {};  // 32 hexadecimal digits
};

// What this thread's lines are about while the scope lives. Scopes nest: what an inner one does not name is the outer
// one's, if both are of one job. Threads inherit nothing: hand CurrentLogContext() over.
class LogScope {
 public:
  explicit LogScope(LogContext context);
  ~LogScope();
  LogScope(const LogScope&) = delete;
  LogScope& operator=(const LogScope&) = delete;

 private:
  const LogContext* const outer_;
  LogContext context_;
};
LogContext CurrentLogContext();

struct LogRecord {
  absl::Time at;
  std::string level;  // "debug", "info", "warn", "error"
  std::string message;
  LogContext context;
};
// `observer` is called on the thread that logs, for each line at the logger's level or above, one at a time: it must
// return at once. What it logs itself is not observed. Thread-safe; after RemoveLogObserver it is not called any more.
int64_t AddLogObserver(std::function<void(const LogRecord&)> observer);
void RemoveLogObserver(int64_t handle);

}  // namespace rlhf
