// The stream behind WatchJob: a job's events from a resume token on, and its stages' when asked for, until it has
// ended.
#pragma once

#include <deque>
#include <set>
#include <string>
#include <vector>

#include "coordinator/grpc_adapter/loop_stream.h"
#include "rlhf/v1/job_service.pb.h"

namespace rlhf::coordinator {

// Stages are read from their beginning; a client that resumes sees a running stage's events again (each has its job's
// id and sequence) and none of a stage that has ended.
class WatchJobStream final : public LoopStream<v1::JobEvent> {
 public:
  WatchJobStream(const Edge& edge, Caller caller, v1::WatchJobRequest request, absl::Duration bookmark_period);

 private:
  // One job's events: what was read and not yet sent.
  struct Source {
    std::string job_id;
    int64_t cursor = 0;  // newest sequence read
    std::deque<v1::JobEvent> page;
    bool dirty = true;  // there may be more to read
    int64_t watch = 0;
  };

  void Pump() override;
  void Ended() override;
  absl::Status Begin();
  void AddSource(const std::string& job_id, int64_t from);
  absl::Status AddStages();
  absl::Status Fill(Source* source);
  void Tick();
  bool JobEnded() const;
  void Send(Source* source);

  const Caller caller_;
  const v1::WatchJobRequest request_;
  const absl::Duration bookmark_period_;
  bool begun_ = false, first_read_ = true;
  std::deque<Source> sources_;  // the job itself first; a deque, so that wakes may point into it
  std::set<std::string> known_stages_;
  int64_t sent_ = 0;  // the job's own newest sequence that was sent
  bool end_seen_ = false, bookmark_due_ = false, wake_posted_ = false;
  int idle_ticks_ = 0;
  absl::Duration last_own_;
};

}  // namespace rlhf::coordinator
