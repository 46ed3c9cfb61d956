// Sends this process's log lines that are about a job to the coordinator, where `rlhfctl logs` reads them.
//
// Logging never waits for it and never fails by it: lines wait in a bounded queue, the oldest is dropped when it is
// full, and how many were dropped is sent in their place. While the coordinator is away or the session is not there
// yet, lines wait. A call whose answer is lost is repeated, so a line may then be there twice.
//
// Thread-safe. Runs one thread; Stop joins it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/time/time.h"
#include "common/metrics.h"

namespace rlhf::client {

struct LogShipperOptions {
  size_t queued_lines = 4096;  // longest queue
  size_t batch_lines = 256;    // lines of a call; so many that wait are sent at once
  absl::Duration every = absl::Seconds(1);
  absl::Duration call_timeout = absl::Seconds(5);
  size_t message_bytes = 4096;  // longer messages are cut
};

class LogShipper {
 public:
  // From now on until Stop. session_id: of this process's FleetSession, empty while it has none; outlives the shipper.
  // With a registry, rlhf_log_lines_total counts lines that were shipped and dropped.
  static std::unique_ptr<LogShipper> Start(std::shared_ptr<grpc::Channel> channel,
                                           std::function<std::string()> session_id, MetricsRegistry* metrics,
                                           const LogShipperOptions& options = {});
  virtual ~LogShipper() = default;  // as Stop
  virtual int64_t shipped() const = 0;
  virtual int64_t dropped() const = 0;
  // Tries once more to send what waits, for a second at most.
  virtual void Stop() = 0;
};

}  // namespace rlhf::client
