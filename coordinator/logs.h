// The fleet's log lines and the coordinator's own: a bounded ring a job, and one of everything, in memory only.
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

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/log.h"
#include "coordinator/event_loop.h"
#include "rlhf/v1/log_service.pb.h"

namespace rlhf::coordinator {

struct LogLimits {
  size_t lines_per_job = 10'000;
  size_t jobs = 64;             // rings; the one written to longest ago goes first
  size_t message_bytes = 4096;  // longer messages are cut
  size_t fields = 16;
};

// Loop thread only.
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

// Takes this process's own lines that are about a job into the rings, from its beginning to its end. Lines may come
// from any thread; at most `waiting` of them wait for the loop, then the oldest is dropped, and how many were is a
// line.
class OwnLines {
 public:
  // Both outlive the object or, for `logs`, the loop's end.
  OwnLines(EventLoop* loop, Logs* logs, std::string instance_id, size_t waiting = 4096);
  ~OwnLines();
  OwnLines(const OwnLines&) = delete;
  OwnLines& operator=(const OwnLines&) = delete;

 private:
  // What the loop's task holds, too.
  struct Waiting {
    absl::Mutex mu;
    v1::AppendLogsRequest lines ABSL_GUARDED_BY(mu);
    int64_t dropped ABSL_GUARDED_BY(mu) = 0;
    bool posted ABSL_GUARDED_BY(mu) = false;
  };
  void Take(const LogRecord& record);

  EventLoop* const loop_;
  Logs* const logs_;
  const std::string instance_id_;
  const size_t most_;
  const std::shared_ptr<Waiting> waiting_ = std::make_shared<Waiting>();
  const int64_t observer_;
};

// "debug" 0 … "error" 3; empty is 0. InvalidArgument for another name.
absl::StatusOr<int> LogLevel(const std::string& name);

}  // namespace rlhf::coordinator
