// Who is there: sessions of rollout workers, reward servers and learners. Loop thread only.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/event_loop.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/admin_service.pb.h"
#include "rlhf/v1/fleet_service.pb.h"

namespace rlhf::coordinator {

struct Session {
  std::string session_id;
  v1::RegisterRequest identity;
  v1::WorkerState state = v1::READY;
  bool draining = false, cordoned = false;
  absl::Duration last_heartbeat;  // monotonic
  v1::HeartbeatRequest last;      // newest heartbeat's content
};

class FleetListener {
 public:
  virtual ~FleetListener() = default;
  virtual void OnHeartbeat(const Session& session, const v1::HeartbeatRequest& request,
                           v1::HeartbeatResponse* response) {}
  // No heartbeat for a lease's life, or the instance registered again: everything the session held is void.
  virtual void OnLost(const Session& session) {}
};

class Fleet {
 public:
  virtual ~Fleet() = default;
  virtual void AddListener(FleetListener* listener) = 0;
  // FailedPrecondition VERSION_MISMATCH unless the process speaks this protocol version or the one before it.
  virtual void Register(const v1::RegisterRequest& request, Done<v1::RegisterResponse> done) = 0;
  virtual void Heartbeat(const v1::HeartbeatRequest& request, Done<v1::HeartbeatResponse> done) = 0;
  // NotFound with reason UNKNOWN_SESSION.
  virtual absl::StatusOr<const Session*> Find(const std::string& session_id) const = 0;
  virtual std::vector<const Session*> Sessions(v1::Role role) const = 0;  // ROLE_UNSPECIFIED: all
  // A session's life without a heartbeat. So long after a start, who lives has registered.
  virtual absl::Duration lease() const = 0;
  virtual absl::Status Drain(const std::string& instance_id) = 0;  // NotFound when it is not registered
  // Gives an instance nothing new until it is uncordoned, also one that is away; durable with the batch. NotFound for
  // uncordoning what is neither cordoned nor registered.
  virtual absl::Status Cordon(const std::string& instance_id, bool uncordon, WriteBatch* batch) = 0;
  // Cordoned instances that are not registered now, by instance; the role that they had when they were cordoned.
  virtual std::map<std::string, v1::Role> CordonedAway() const = 0;
  // What was cordoned before a restart. Before anybody registers.
  virtual absl::Status Recover(StateStore* store) = 0;
  virtual void Tick() = 0;  // expires sessions; called every 500 ms
};
// heartbeat_interval 3 s and lease 9 s in production; tests use shorter ones.
std::unique_ptr<Fleet> MakeFleet(EventLoop* loop, absl::Duration heartbeat_interval, absl::Duration lease);

}  // namespace rlhf::coordinator
