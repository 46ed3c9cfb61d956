#include "learner/service/rank_agreement.h"

#include <vector>

#include "common/status_util.h"
#include "learner/trainable.h"

namespace rlhf::learner {

// Numbers are all equal exactly when n · Σx² = (Σx)²; four hexadecimal digits at a time these sums are exact.
absl::StatusOr<bool> RanksAgree(const std::string& hex_digest, torch::Device device, Collective& collective) {
  std::vector<double> sums;
  for (size_t i = 0; i + 4 <= hex_digest.size(); i += 4) {
    const auto part = static_cast<double>(std::stoul(hex_digest.substr(i, 4), nullptr, 16));
    sums.push_back(part);
    sums.push_back(part * part);
  }
  RLHF_RETURN_IF_ERROR(SumOverRanks(&sums, device, &collective));
  for (size_t i = 0; i < sums.size(); i += 2) {
    if (collective.world_size() * sums[i + 1] != sums[i] * sums[i]) return false;
  }
  return true;
}

}  // namespace rlhf::learner
