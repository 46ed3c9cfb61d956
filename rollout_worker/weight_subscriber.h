// Fetches a policy version from processes that hold it, into memory: whole, or what changed since a version that is
// there. It touches no model, and may run beside generation.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "model/device_share.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/fleet_service.pb.h"
#include "rollout_worker/fetched_weights.h"
#include "rollout_worker/weight_relay.h"

namespace rlhf::rollout {

struct WeightSubscriberOptions {
  // What the coordinator wants relayed is served there while, and after, it is received; null: nothing is. Outlives the
  // subscriber.
  WeightRelay* relay = nullptr;
  absl::Duration stall = absl::Seconds(5);     // a worker that sends nothing for so long is left for the next source
  absl::Duration patience = absl::Seconds(2);  // with workers that have nothing of the version yet, all together
  std::string shm_dir;                 // where a learner of this host and user shares whole versions; empty: nowhere
  torch::Device device = torch::kCPU;  // of the model that the weights are for
  // How what a learner shares in GPU memory is copied; null: by TakeShared, on a CUDA device.
  std::function<absl::StatusOr<torch::Tensor>(const model::DeviceShareName&, uint64_t size, torch::Device)> take_shared;
};

class WeightSubscriber {
 public:
  using ChannelFactory = std::function<absl::StatusOr<std::shared_ptr<grpc::Channel>>(const std::string& address)>;
  explicit WeightSubscriber(ChannelFactory channels, WeightSubscriberOptions options = {})
      : channels_(std::move(channels)), options_(std::move(options)) {}

  // The manifest comes from the learner, the last address; the bytes from the first address that has them. A source
  // that breaks, stalls or sends what the manifest does not say is left for the next one, which goes on where it
  // stopped; the learner is asked more than once. A whole version that the learner shares in this host's memory is
  // mapped from there instead, and received when that fails; one that it shares in GPU memory is copied within it,
  // while the learner holds it, unless others want it relayed. Every tensor's XXH3-128 is verified as it arrives in the
  // host's memory. A delta from the version with the digest `held` is taken when there is one; empty: none. NotFound:
  // superseded, ask for newer work. While versions are received whole, the memory of one is kept for the next.
  absl::StatusOr<FetchedWeights> Fetch(const v1::PolicySource& source, const std::string& held = "");

 private:
  absl::Status Receive(const v1::PolicySource& source, const std::shared_ptr<grpc::Channel>& learner,
                       FetchedWeights* out);
  // The whole version within GPU memory, as the manifest says.
  absl::Status TakeOnDevice(const std::shared_ptr<grpc::Channel>& learner, FetchedWeights* out) const;
  // The whole version from this host's memory, as the manifest says.
  absl::Status Map(FetchedWeights* out) const;
  // Memory for a stream of so many bytes.
  std::shared_ptr<uint8_t[]> Memory(uint64_t size, bool delta);
  ChannelFactory channels_;
  const WeightSubscriberOptions options_;

  // Of the last whole version, for the next one if nobody reads it any more: new memory costs as much as the transfer.
  absl::Mutex mu_;
  std::shared_ptr<uint8_t[]> memory_ ABSL_GUARDED_BY(mu_);
  uint64_t memory_size_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace rlhf::rollout
