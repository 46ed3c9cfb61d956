// Fetches a policy version from a process that holds it, into memory, and applies it to a model in place.
//
// Fetch may run beside generation (it touches no model); Apply runs between decode steps.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/transformer.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/fleet_service.pb.h"

namespace rlhf::rollout {

struct FetchedWeights {
  v1::WeightsManifest manifest;
  std::vector<uint8_t> bytes;
};

class WeightSubscriber {
 public:
  using ChannelFactory = std::function<absl::StatusOr<std::shared_ptr<grpc::Channel>>(const std::string& address)>;
  explicit WeightSubscriber(ChannelFactory channels) : channels_(std::move(channels)) {}

  // Tries each address; resumes a broken stream where it stopped; verifies every tensor's XXH3-128. NotFound:
  // superseded, ask for newer work.
  absl::StatusOr<FetchedWeights> Fetch(const v1::PolicySource& source);

 private:
  absl::StatusOr<FetchedWeights> FetchFrom(const std::string& address, const v1::PolicySource& source);
  ChannelFactory channels_;
};

// InvalidArgument naming the tensor when names, shapes or dtypes differ from the model's.
absl::Status ApplyWeights(const FetchedWeights& weights, model::Transformer& model);

}  // namespace rlhf::rollout
