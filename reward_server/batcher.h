// Gathers scoring requests that ask for the same scorer into one batch: up to a token budget, or a short delay after
// the first.
//
// Thread-safe; one thread computes. Requests for which users' own services are asked (common/asks_service.h) have
// threads of their own, where there are any, a batch of each scorer at a time: `compute` is then called from several
// threads. Submit refuses with ResourceExhausted when the queue is full. What nobody waits for
// any more is answered Cancelled and not computed.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/stuck_watch.h"
#include "rlhf/v1/reward_service.pb.h"

namespace rlhf::reward {

struct BatcherOptions {
  int64_t batch_tokens = 16384;
  absl::Duration delay = absl::Milliseconds(2);
  size_t max_queued_requests = 256;
  absl::Duration stuck_after = absl::Minutes(10);  // longer than a batch takes, its models' loading included; 0: never
  int asking_threads = 0;
};

class Batcher {
 public:
  using Compute = std::function<v1::ScoreResponse(const v1::ScoreRequest&)>;
  using Reply = absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)>;
  // Whether nobody waits for the reply any more; asked from the computing thread until the reply is given.
  using Gone = std::function<bool()>;
  // Called after each batch with its size in samples and its duration.
  using Observer = std::function<void(int samples, absl::Duration took)>;
  Batcher(Compute compute, const BatcherOptions& options, Observer observer);
  ~Batcher();
  void Submit(v1::ScoreRequest request, Reply reply, Gone gone = nullptr);
  int64_t completed() const { return completed_; }  // requests answered; grows with progress
  size_t queued() const;
  std::string StuckBecause() const;  // StuckWatch's, of the first thread that is
  // Answers what is queued, then stops.
  void Stop();

 private:
  struct Item {
    v1::ScoreRequest request;
    Reply reply;
    Gone gone;        // null: never
    std::string key;  // equal keys may share a batch
    bool asks = false;
    int64_t tokens = 0;
  };
  struct Worker {
    explicit Worker(absl::Duration stuck_after) : stuck(stuck_after) {}
    bool asks = false;  // takes the requests for which services are asked
    StuckWatch stuck;
    std::thread thread;
  };
  void Loop(Worker* worker);
  // The first that the worker may take; the queue's end when there is none.
  std::deque<Item>::iterator Takable(const Worker& worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes what nobody waits for out of the queue.
  std::vector<Item> TakeGone() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Compute compute_;
  BatcherOptions options_;
  Observer observer_;
  mutable absl::Mutex mu_;
  std::deque<Item> queue_ ABSL_GUARDED_BY(mu_);
  std::set<std::string> asking_ ABSL_GUARDED_BY(mu_);  // keys
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::atomic<int64_t> completed_{0};
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace rlhf::reward
