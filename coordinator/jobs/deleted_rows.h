// The rows of jobs that were deleted: a long job has millions, and a transaction that erases them all at once keeps
// every other write waiting for minutes. They go some hundred at a time, also over restarts. Loop thread only.
#pragma once

#include <deque>
#include <functional>
#include <string>

#include "coordinator/event_loop.h"
#include "coordinator/store/state_store.h"

namespace rlhf::coordinator {

class DeletedRows {
 public:
  // `gone` runs when nothing is left of any of them.
  DeletedRows(EventLoop* loop, StateStore* store, std::function<void()> gone)
      : loop_(loop), store_(store), gone_(std::move(gone)) {}

  // Goes on with what an earlier process began.
  absl::Status Recover();
  // Makes durable, with the batch, that the job's rows are to go: of samples, events, tasks, answers, steps and
  // checkpoints. What else there is of it the caller erases.
  static void Mark(const std::string& job_id, WriteBatch* batch);
  // Once that is durable.
  void Begin(const std::string& job_id);

 private:
  void EraseSome();

  EventLoop* const loop_;
  StateStore* const store_;
  const std::function<void()> gone_;
  std::deque<std::string> jobs_;  // the first is being erased
  // Where that is: read again from the beginning, an index would lead over everything that has just gone (PostgreSQL
  // keeps its entries until a vacuum).
  size_t place_ = 0;
  std::string erased_through_;
};

}  // namespace rlhf::coordinator
