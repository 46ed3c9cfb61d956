// Fetches a policy version from a process that holds it, into memory, and applies it to a model in place: whole, or
// what changed since the version that the model has.
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
  bool delta = false;          // what `bytes` are: the manifest's delta, else the whole version
  std::vector<uint8_t> bytes;  // as received
};

class WeightSubscriber {
 public:
  using ChannelFactory = std::function<absl::StatusOr<std::shared_ptr<grpc::Channel>>(const std::string& address)>;
  explicit WeightSubscriber(ChannelFactory channels) : channels_(std::move(channels)) {}

  // Tries each address; resumes a broken stream where it stopped; verifies every whole tensor's XXH3-128. A delta from
  // the version with the digest `held` is taken when there is one; empty: none. NotFound: superseded, ask for newer
  // work.
  absl::StatusOr<FetchedWeights> Fetch(const v1::PolicySource& source, const std::string& held = "");

 private:
  absl::StatusOr<FetchedWeights> FetchFrom(const std::string& address, const v1::PolicySource& source,
                                           const std::string& held);
  ChannelFactory channels_;
};

// Makes the model the version's; a refused one leaves the model as it was. InvalidArgument naming the tensor when
// names, shapes or dtypes differ from the model's; DataLoss when a delta does not lead from the model's weights to the
// version's: fetch the whole.
absl::Status ApplyWeights(FetchedWeights weights, model::Transformer& model);

}  // namespace rlhf::rollout
