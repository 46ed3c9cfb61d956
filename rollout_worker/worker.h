// The rollout worker's service loop: leases prompts, generates, submits, and reports progress.
//
// Three threads: one generates (it owns the engine), one leases ahead so that decoding never waits for an RPC, one
// submits. Thread-safe.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/cpp/evidence_log.h"
#include "client/cpp/fleet_session.h"
#include "common/bounded_queue.h"
#include "common/metrics.h"
#include "common/stuck_watch.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "rollout_worker/policy_loader.h"
#include "rollout_worker/worker_metrics.h"

namespace rlhf::rollout {

// Samples as requests, in their order, each of at most so many bytes of samples, or of one sample.
std::vector<v1::SubmitSamplesRequest> SubmissionsOf(std::vector<v1::Sample> samples, size_t most_bytes);

class Worker {
 public:
  // All pointers outlive the worker. `identity` is what Register sends. evidence_dir: where to keep a list of the
  // samples that the coordinator accepted; empty: nowhere. stuck_after: longer than a step of the engine takes;
  // 0: never.
  Worker(std::shared_ptr<grpc::Channel> coordinator, const v1::RegisterRequest& identity, PolicyLoader* loader,
         MetricsRegistry* metrics, const std::string& evidence_dir = "",
         absl::Duration stuck_after = absl::Minutes(10));
  ~Worker();
  void Start();
  // Finishes what is leased, or hands it back when the grace ends, then stops. Blocks.
  void Drain(absl::Duration grace);
  bool drained() const { return drained_; }  // the coordinator asked for it and nothing is left
  bool ready() const;                        // registered
  std::string StuckBecause() const { return stuck_.StuckBecause(); }  // StuckWatch's
  absl::Status fatal() const { return session_->fatal(); }
  std::string session_id() const { return session_->session_id(); }  // after Start; empty while not registered

 private:
  void LeaseLoop();
  void GenerateLoop();
  void SubmitLoop();
  // Until the coordinator has answered, or the worker stops. What cannot be submitted at all is handed back.
  void Submit(v1::SubmitSamplesRequest request);
  void FillHeartbeat(v1::HeartbeatRequest* request);
  void OnHeartbeat(const v1::HeartbeatResponse& response);
  // The work is in the engine or handed back afterwards.
  void Accept(const v1::LeasePromptsResponse& work);
  void TakeUp(const v1::LeasePromptsResponse& work);
  void Arrived(const v1::LeasePromptsResponse& work);
  // Why a lease is handed back, which says what it costs its samples: an attempt, all attempts, or nothing because what
  // they need is away for now, or because another worker has to do it: the whole job, or this prompt.
  enum class Fault { kAttempt, kPermanent, kUnavailable, kUnsuited, kTooSmall };
  // needs_cache_bytes: of kTooSmall, ReturnedLease's.
  void HandBack(const v1::PromptLease& lease, const std::string& error, Fault fault, int64_t needs_cache_bytes = 0);
  // What HandBack has collected.
  void GiveBack();
  // A turn of the generating thread: leases that the coordinator took back, a step of the engine, and what heartbeats
  // and the leasing thread are to know. Null: there is no engine yet.
  void DropRevoked(Engine* engine);
  void Step(Engine& engine);
  void TellStanding(Engine* engine);
  // Spans of generation, in each sample's own trace; what was handed back leaves none.
  void TraceGenerated(const std::vector<v1::Sample>& samples);

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::FleetService::Stub> stub_;
  v1::RegisterRequest identity_;
  PolicyLoader* loader_;
  StuckWatch stuck_;                            // of the generating thread
  WorkerMetrics metrics_;                       // the generating thread's
  client::AcceptedLog accepted_log_;            // the submitting thread's
  std::map<std::string, absl::Time> taken_up_;  // the generating thread's; by "JOB/STEP/ORDINAL/INDEX", while tracing
  std::unique_ptr<client::FleetSession> session_;

  BoundedQueue<v1::LeasePromptsResponse> leased_{2};
  BoundedQueue<std::vector<v1::Sample>> finished_{64};
  BoundedQueue<v1::ReturnedLease> returned_{4096};

  mutable absl::Mutex mu_;
  std::vector<v1::LeaseProgress> arriving_ ABSL_GUARDED_BY(mu_);  // leased, not in the engine yet
  std::vector<v1::LeaseProgress> progress_ ABSL_GUARDED_BY(mu_);  // in the engine
  v1::PolicyVersion policy_ ABSL_GUARDED_BY(mu_);
  int64_t cache_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // the engine's
  std::vector<v1::LeaseProgress> revoked_ ABSL_GUARDED_BY(mu_);
  // Finished or in the queue, and not yet acknowledged: still ours, so still reported.
  std::vector<v1::LeaseProgress> unacknowledged_ ABSL_GUARDED_BY(mu_);

  std::atomic<int> capacity_;    // samples the engine could take now
  std::atomic<int> loading_{0};  // weights or another model are fetched and loaded: what arrives waits for that
  std::atomic<bool> draining_{false}, stopping_{false}, drained_{false};
  std::vector<std::thread> threads_;
};

}  // namespace rlhf::rollout
