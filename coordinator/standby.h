// What a coordinator that does not lead says on its fleet and API listeners: every call is refused with UNAVAILABLE and
// reason NOT_LEADING, and gRPC health says NOT_SERVING, so that clients with several addresses go to the one that
// leads.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/metrics.h"
#include "coordinator/config.h"

namespace rlhf::coordinator {

class Standby {
 public:
  // `why` is asked for each call; thread-safe. Unavailable when a listener's port is taken.
  static absl::StatusOr<std::unique_ptr<Standby>> Start(const CoordinatorConfig& config, MetricsRegistry* metrics,
                                                        const std::function<std::string()>& why);
  // Closes the listeners: their ports are free afterwards. Blocks.
  virtual ~Standby() = default;
  // host:port, with the ports that were bound.
  virtual std::string fleet_address() const = 0;
  virtual std::string api_address() const = 0;
};

}  // namespace rlhf::coordinator
