// A rank's calls to the coordinator, with retries while it is unreachable. One job and epoch at a time.
//
// Blocking; used by the training thread. Cancel (any thread) wakes a blocked call, which fails as Cancelled.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/cpp/fleet_session.h"
#include "learner/share.h"
#include "rlhf/v1/learner_service.grpc.pb.h"

namespace rlhf::learner {

class CoordinatorClient {
 public:
  CoordinatorClient(std::shared_ptr<grpc::Channel> channel, client::FleetSession* session);

  // One long poll; an empty response means there is nothing to do yet.
  absl::StatusOr<v1::JoinGroupResponse> Join(const std::string& held_job, const v1::PolicyVersion& held,
                                             const Share& held_share, const std::string& left_because);
  absl::Status PublishRendezvous(const v1::GroupAssignment& group, const std::string& address);
  absl::StatusOr<std::vector<v1::Sample>> NextBatch(const v1::GroupAssignment& group, int64_t step);
  // When replies are lost, asks what is committed: an equal step and digest is this commit.
  absl::StatusOr<v1::CommitStepResponse> Commit(const v1::GroupAssignment& group, v1::CommitStepRequest request);
  // The newest durably committed version.
  absl::StatusOr<v1::PolicyVersion> Committed(const std::string& job_id);
  absl::Status Refuse(const v1::GroupAssignment& group, int64_t step, const std::string& reason);
  absl::Status Report(const v1::GroupAssignment& group, std::vector<v1::MetricPoint> points, int64_t step,
                      int64_t total);
  absl::Status Checkpoint(const v1::GroupAssignment& group, int64_t step, const std::string& digest);
  absl::Status Finish(const v1::GroupAssignment& group, const std::map<std::string, std::string>& artifacts,
                      const std::map<std::string, v1::Metric>& metrics);
  absl::Status Fail(const v1::GroupAssignment& group, const std::string& reason, const std::string& code);

  // Whether an answer asked for a checkpoint since the last call: the group is about to leave (preempted or paused).
  bool TakeCheckpointRequest();

  // From now on, and until Reset, calls fail as Cancelled.
  void Cancel();
  void Reset();
  // Blocks until Cancel.
  void WaitCancelled();
  // False when cancelled meanwhile.
  bool SleepUnlessCancelled(absl::Duration duration);

 private:
  absl::Status Retry(const std::function<absl::Status(grpc::ClientContext*)>& call, absl::Duration timeout);
  void NoteCheckpointRequest(bool asked);
  template <typename Request>
  Request Fenced(const v1::GroupAssignment& group) const;

  std::unique_ptr<v1::LearnerService::Stub> stub_;
  client::FleetSession* session_;
  absl::Mutex mu_;
  grpc::ClientContext* active_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  bool checkpoint_asked_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace rlhf::learner
