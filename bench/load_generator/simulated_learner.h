// A learner without a model: joins the group of one, reads every batch, commits it at once, and checkpoints a few
// bytes. A thread of its own, which ends when training is over or Stop is called.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "bench/load_generator/options.h"
#include "bench/load_generator/recorder.h"
#include "client/cpp/artifact_cache.h"
#include "client/cpp/evidence_log.h"
#include "client/cpp/fleet_session.h"
#include "rlhf/v1/learner_service.grpc.pb.h"

namespace rlhf::bench {

class SimulatedLearner {
 public:
  // `artifact_root` is the coordinator's.
  SimulatedLearner(const LoadOptions& options, std::string instance, std::shared_ptr<grpc::Channel> channel,
                   std::string artifact_root, Recorder* recorder);
  ~SimulatedLearner() { Stop(); }
  void Stop();
  int64_t committed() const { return committed_; }

 private:
  void Run();
  absl::Status Train(const v1::GroupAssignment& group);
  // Lists the batch in `samples`.
  absl::Status ReadBatch(const v1::GroupAssignment& group, int64_t step, std::vector<std::string>* samples);
  absl::Status Commit(const v1::GroupAssignment& group, int64_t step, std::vector<std::string> samples);
  absl::Status Checkpoint(const v1::GroupAssignment& group, int64_t step);
  template <typename Request>
  Request Fenced(const v1::GroupAssignment& group) const;

  const LoadOptions options_;
  const std::string instance_, artifact_root_;
  Recorder* const recorder_;
  const uint32_t protocol_version_;
  client::ArtifactCache artifacts_;
  client::StepLog step_log_;
  const std::unique_ptr<v1::LearnerService::Stub> stub_;
  std::unique_ptr<client::FleetSession> session_;
  absl::Mutex mu_;
  grpc::ClientContext* reading_ ABSL_GUARDED_BY(mu_) = nullptr;  // the call that waits for a batch
  std::atomic<bool> stopped_{false};
  std::atomic<int64_t> committed_{0};
  std::string held_job_;
  v1::PolicyVersion held_;
  bool checkpoint_asked_ = false;
  std::thread thread_;
};

}  // namespace rlhf::bench
