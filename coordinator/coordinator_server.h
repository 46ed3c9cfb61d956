// The whole coordinator in one object: opens the state, recovers, serves, and shuts down in order.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "coordinator/config.h"

namespace rlhf::coordinator {

class CoordinatorServer {
 public:
  // Blocks until everything is recovered and all listeners are open. FailedPrecondition when the data folder is in use.
  static absl::StatusOr<std::unique_ptr<CoordinatorServer>> Start(const CoordinatorConfig& config, Clock* clock);
  virtual ~CoordinatorServer() = default;  // as Shutdown, without grace
  // "fleet", "api", "http", "web".
  virtual std::map<std::string, int> ports() const = 0;
  // A write could not be made durable (a full or failing disk). Nothing is acknowledged any more: shut down and start
  // again, which reads what the disk holds.
  virtual bool store_failed() const = 0;
  // Not ready and NOT_SERVING at once; waiting calls are told to come again; others get the grace. Blocks.
  virtual void Shutdown(absl::Duration grace) = 0;
};

}  // namespace rlhf::coordinator
