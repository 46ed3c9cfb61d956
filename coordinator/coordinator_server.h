// The whole coordinator in one object: opens the state, recovers, serves, and shuts down in order.
#pragma once

#include <functional>
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
  // On PostgreSQL, while another coordinator leads, it stands by: /healthz is served, /readyz says no, calls are
  // refused (standby.h), until it leads. `stop` is asked meanwhile; Cancelled once it returned true.
  static absl::StatusOr<std::unique_ptr<CoordinatorServer>> Start(const CoordinatorConfig& config, Clock* clock,
                                                                  const std::function<bool()>& stop = nullptr);
  virtual ~CoordinatorServer() = default;  // as Shutdown, without grace
  // "fleet", "api", "http", "web".
  virtual std::map<std::string, int> ports() const = 0;
  // A write could not be made durable (a full or failing disk). Nothing is acknowledged any more: shut down and start
  // again, which reads what the disk holds.
  virtual bool store_failed() const = 0;
  // Another coordinator leads, or may (PostgreSQL only): end the process at once, without Shutdown. Everything in
  // memory may be out of date.
  virtual bool lead_lost() const = 0;
  // Not ready and NOT_SERVING at once; waiting calls are told to come again; others get the grace. Blocks.
  virtual void Shutdown(absl::Duration grace) = 0;
};

}  // namespace rlhf::coordinator
