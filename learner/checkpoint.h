// A checkpoint directory: state.safetensors (tensors by name) and state.json (numbers and texts by name).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "model/libtorch.h"

namespace rlhf::learner {

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

// Writes both files into an existing directory; no fsync (the artifact root does it).
absl::Status WriteCheckpoint(const std::string& dir, const NamedTensors& tensors, const nlohmann::json& state);
// Copies into the given live tensors (same names, shapes and dtypes; missing, extra and misshaped ones are named in
// DataLoss) and fills `state`.
absl::Status ReadCheckpoint(const std::string& dir, const NamedTensors& tensors, nlohmann::json* state);

// XXH3-128 over every tensor's name and bytes, in order, and the numbers' bytes: what a checkpoint would hold, hex.
std::string StateDigest(const NamedTensors& tensors, const std::vector<double>& numbers);

}  // namespace rlhf::learner
