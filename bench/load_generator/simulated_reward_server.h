// A reward server without a model: every sample scores its length, and the reference log-probabilities are constants.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "bench/load_generator/fleet_channels.h"
#include "bench/load_generator/options.h"

namespace rlhf::bench {

class SimulatedRewardServer {
 public:
  // Serves on a free loopback port and registers with the coordinator.
  static absl::StatusOr<std::unique_ptr<SimulatedRewardServer>> Start(const LoadOptions& options,
                                                                      const std::string& instance,
                                                                      const std::string& coordinator,
                                                                      const FleetChannels& channels);
  virtual ~SimulatedRewardServer() = default;
};

}  // namespace rlhf::bench
