// The fleet's log lines: a bounded ring a job, and one of everything, in memory only. Loop thread only.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "rlhf/v1/log_service.pb.h"

namespace rlhf::coordinator {

struct LogLimits {
  size_t lines_per_job = 10'000;
  size_t jobs = 64;             // rings; the one written to longest ago goes first
  size_t message_bytes = 4096;  // longer messages are cut
  size_t fields = 16;
};

class Logs {
 public:
  struct Entry {
    int64_t sequence = 0;
    std::shared_ptr<const v1::LogLine> line;
  };
  explicit Logs(const LogLimits& limits = {}) : limits_(limits) {}
  // `instance_id` is what the lines are marked with, whatever they say themselves.
  void Append(const std::string& instance_id, const std::string& role, const v1::AppendLogsRequest& request);
  // Lines of a job (of all when empty) after `sequence`, at `min_level` or above, oldest first, at most `limit`.
  // `*scanned` becomes the sequence to go on from.
  std::vector<Entry> Read(const std::string& job_id, int64_t sequence, int min_level, size_t limit,
                          int64_t* scanned) const;
  int64_t Watch(std::function<void()> wake);
  void Unwatch(int64_t handle);

 private:
  using Ring = std::deque<Entry>;
  struct JobRing {
    Ring ring;
    std::list<std::string>::iterator used;
  };
  void Push(Ring* ring, const Entry& entry);
  Ring* RingOf(const std::string& job_id);

  const LogLimits limits_;
  int64_t last_sequence_ = 0;
  Ring all_;
  std::map<std::string, JobRing> by_job_;
  std::list<std::string> recency_;  // newest in front
  int64_t next_watch_ = 1;
  std::map<int64_t, std::function<void()>> watches_;
};

// "debug" 0 … "error" 3; empty is 0. InvalidArgument for another name.
absl::StatusOr<int> LogLevel(const std::string& name);

}  // namespace rlhf::coordinator
