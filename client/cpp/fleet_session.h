// A role's standing with the coordinator: registers, heartbeats, and registers again whenever the session is unknown
// (the coordinator restarted, or gave this instance up). Shared by rollout worker, reward server and learner.
//
// Thread-safe. Runs one thread; Stop joins it.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"

namespace rlhf::client {

class FleetSession {
 public:
  struct Callbacks {
    // Fills progress, policy, group and counter just before a heartbeat is sent. session_id is set by the session.
    std::function<void(v1::HeartbeatRequest*)> fill_heartbeat;
    std::function<void(const v1::HeartbeatResponse&)> on_heartbeat;
    // A new session began (also the first): leases of an older session are void.
    std::function<void(const std::string& session_id)> on_session;
  };
  // Retries with backoff until registered or stopped; FailedPrecondition (version mismatch) is final and reported by
  // `fatal()`.
  static std::unique_ptr<FleetSession> Start(std::shared_ptr<grpc::Channel> channel,
                                             const v1::RegisterRequest& identity, Callbacks callbacks);
  virtual ~FleetSession() = default;
  virtual std::string session_id() const = 0;  // empty while not registered
  virtual bool WaitRegistered(absl::Duration timeout) = 0;
  virtual void Invalidate() = 0;  // a call was answered UNKNOWN_SESSION: register again now
  // The same, when that is still the current session: late answers to an older one must not end a new one.
  virtual void Invalidate(const std::string& unknown_session_id) = 0;
  virtual absl::Status fatal() const = 0;
  virtual void Stop() = 0;
};

}  // namespace rlhf::client
