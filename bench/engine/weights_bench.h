// How fast a policy's weights get from a learner's publisher into a rollout worker's model, in one process over
// loopback: whole, with and without TLS, and as a delta after an update at learning rate 1e-6.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"

namespace rlhf::bench {

// GB/s (bytes received by second; of the delta's encoding and applying, bytes of model), medians over `rounds` in which
// everything runs in turn, and "delta_share", the delta's bytes by the whole's in bfloat16.
absl::StatusOr<nlohmann::ordered_json> MeasureWeights(const std::string& model_dir, int rounds);

}  // namespace rlhf::bench
