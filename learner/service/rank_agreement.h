// Whether all ranks have come to the same digests.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "learner/collective.h"
#include "model/libtorch.h"

namespace rlhf::learner {

// Whether `hex_digest`, hexadecimal digits in a multiple of four and as many on every rank, is the same on all of them.
// All ranks call it and learn the same answer. The collective's error.
absl::StatusOr<bool> RanksAgree(const std::string& hex_digest, torch::Device device, Collective& collective);

}  // namespace rlhf::learner
