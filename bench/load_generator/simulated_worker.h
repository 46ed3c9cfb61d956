// A rollout worker without a model: registers, heartbeats, leases on a schedule, "generates" for a while, submits.
//
// All logic runs on the given loop; calls are gRPC's asynchronous ones. To end: Stop on the loop, Drain, end the loop,
// destroy.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "bench/load_generator/options.h"
#include "bench/load_generator/recorder.h"
#include "client/cpp/evidence_log.h"
#include "coordinator/event_loop.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"

namespace rlhf::bench {

class SimulatedWorker {
 public:
  SimulatedWorker(const LoadOptions& options, std::string instance, std::shared_ptr<grpc::Channel> channel,
                  coordinator::EventLoop* loop, Recorder* recorder);
  // The first lease is asked for `delay` after it is registered, the next ones every `period`.
  void Start(absl::Duration delay, absl::Duration period);
  void Stop();   // on the loop: cancels the calls in flight
  void Drain();  // off the loop: blocks until they have ended
  bool registered() const { return !session_.empty(); }

 private:
  void Register();
  void Heartbeat();
  void Lease();
  void Generate(const v1::LeasePromptsResponse& response);
  void Submit(std::shared_ptr<v1::SubmitSamplesRequest> request);
  void Next();
  bool SessionLost(const absl::Status& status);
  template <typename Request, typename Response>
  void Call(const std::string& what,
            void (v1::FleetService::Stub::async::*method)(grpc::ClientContext*, const Request*, Response*,
                                                          std::function<void(grpc::Status)>),
            std::shared_ptr<Request> request, std::function<int64_t(const Response&)> items,
            std::function<void(const absl::Status&, const Response&)> then);

  const LoadOptions options_;
  const std::string instance_;
  const std::unique_ptr<v1::FleetService::Stub> stub_;
  coordinator::EventLoop* const loop_;
  Recorder* const recorder_;
  client::AcceptedLog accepted_log_;  // on the loop
  v1::Sample sample_;                 // what every sample of it is a copy of
  std::string session_;
  std::map<std::string, v1::LeaseProgress> held_;
  absl::Duration delay_, period_, next_lease_, heartbeat_;
  int tokens_done_ = 0;
  bool stopped_ = false;
  absl::Mutex mu_;
  std::set<grpc::ClientContext*> in_flight_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rlhf::bench
