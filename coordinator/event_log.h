// A job's events: durable, numbered, and streamed to watchers after they are durable. Loop thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "coordinator/event_loop.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

class EventLog {
 public:
  virtual ~EventLog() = default;
  // Numbers the event (sequence, time) and adds it to the batch. Watchers see it when Published is called after the
  // commit.
  virtual void Append(const std::string& job_id, v1::JobEvent event, WriteBatch* batch) = 0;
  // The caller's batch is durable: wakes watchers of everything appended so far for the job.
  virtual void Published(const std::string& job_id) = 0;
  // Events after `from` in order, at most `limit`.
  virtual absl::StatusOr<std::vector<v1::JobEvent>> Read(const std::string& job_id, int64_t from, int limit) = 0;
  virtual int64_t LastSequence(const std::string& job_id) = 0;
  // `wake` runs on the loop whenever new events of the job are published. Returns a handle for Unwatch.
  virtual int64_t Watch(const std::string& job_id, std::function<void()> wake) = 0;
  virtual void Unwatch(int64_t handle) = 0;
};
std::unique_ptr<EventLog> MakeEventLog(StateStore* store, EventLoop* loop);

}  // namespace rlhf::coordinator
