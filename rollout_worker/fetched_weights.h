// A policy version as it was fetched, and how a model becomes it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/transformer.h"
#include "rlhf/v1/weights_service.pb.h"

namespace rlhf::rollout {

struct FetchedWeights {
  v1::WeightsManifest manifest;
  bool delta = false;                  // what `bytes` are: the manifest's delta, else the whole version
  absl::Span<const uint8_t> bytes;     // as received and verified
  std::shared_ptr<const void> owner;   // of the bytes; others may read them too
  uint64_t from_workers = 0;           // bytes that came from other rollout workers
  torch::Device device = torch::kCPU;  // where they lie
  bool mapped = false;                 // taken from the learner's own, in this host's or its GPU's memory
  bool not_mapped = false;             // they should have been, and were received instead
};

// Where a tensor's bytes lie among those of a stream, and whether they are all of it. Empty: it has not changed.
struct WeightPart {
  absl::Span<const uint8_t> bytes;
  bool whole = true;
};
// One a tensor of the manifest, in order, of a stream that is one after the other. DataLoss when the manifest does not
// fit the stream.
absl::StatusOr<std::vector<WeightPart>> PartsOf(const v1::WeightsManifest& manifest, bool delta,
                                                absl::Span<const uint8_t> bytes);

// Makes the model the version's, between two decode steps; a refused one leaves the model as it was. Unsuited (see
// unsuited.h) when the weights are of another precision than this worker's; InvalidArgument naming the tensor when
// names or shapes differ from the model's; DataLoss when a delta does not lead from the model's weights to the
// version's: fetch the whole.
absl::Status ApplyWeights(const FetchedWeights& weights, model::Transformer& model);

}  // namespace rlhf::rollout
