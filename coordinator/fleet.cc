#include "coordinator/fleet.h"

#include <algorithm>
#include <map>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/log.h"
#include "common/process.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

constexpr char kCordonedPrefix[] = "cordoned/";  // rows in Table::kMeta; then the instance, a Worker with its role

class FleetImpl final : public Fleet {
 public:
  FleetImpl(EventLoop* loop, absl::Duration heartbeat_interval, absl::Duration lease)
      : loop_(loop), heartbeat_interval_(heartbeat_interval), lease_(lease) {}

  void AddListener(FleetListener* listener) override { listeners_.push_back(listener); }
  absl::Duration lease() const override { return lease_; }

  void Register(const v1::RegisterRequest& request, Done<v1::RegisterResponse> done) override {
    const int64_t behind = static_cast<int64_t>(kProtocolVersion) - static_cast<int64_t>(request.protocol_version());
    if (behind < 0 || behind > 1) {
      return done(WithReason(absl::FailedPreconditionError(absl::StrCat(
                                 "protocol version of ", request.instance_id(), ": expected ", kProtocolVersion - 1,
                                 " or ", kProtocolVersion, ", found ", request.protocol_version(), ": update ",
                                 behind < 0 ? "the coordinator first" : "this process to the coordinator's release")),
                             v1::VERSION_MISMATCH));
    }
    if (request.role() == v1::ROLE_UNSPECIFIED || request.instance_id().empty()) {
      return done(absl::InvalidArgumentError("register: expected a role and an instance_id"));
    }
    // The same instance again: its old process is gone, or must not act any more.
    for (auto it = sessions_.begin(); it != sessions_.end(); ++it) {
      if (it->second.identity.instance_id() == request.instance_id() && it->second.identity.role() == request.role()) {
        Lose(it, "registered again");
        break;
      }
    }
    Session session;
    session.session_id = absl::StrFormat("s-%016x", random_());
    session.identity = request;
    session.last_heartbeat = loop_->clock().Now();
    session.cordoned = cordoned_.count(request.instance_id()) > 0;
    const Session& stored = sessions_.emplace(session.session_id, session).first->second;
    spdlog::info("{} {} registered from {}, build {}", v1::Role_Name(request.role()), request.instance_id(),
                 request.address().empty() ? "-" : request.address(), request.build_version());
    v1::RegisterResponse response;
    response.set_session_id(stored.session_id);
    response.set_heartbeat_interval_ms(static_cast<int32_t>(absl::ToInt64Milliseconds(heartbeat_interval_)));
    response.set_lease_ms(static_cast<int32_t>(absl::ToInt64Milliseconds(lease_)));
    response.set_protocol_version(std::min(request.protocol_version(), kProtocolVersion));
    done(std::move(response));
  }

  void Heartbeat(const v1::HeartbeatRequest& request, Done<v1::HeartbeatResponse> done) override {
    const auto it = sessions_.find(request.session_id());
    if (it == sessions_.end()) return done(Unknown(request.session_id()));
    Session& session = it->second;
    session.last_heartbeat = loop_->clock().Now();
    session.last = request;
    v1::HeartbeatResponse response;
    response.set_drain(session.draining);
    for (FleetListener* listener : listeners_) listener->OnHeartbeat(session, request, &response);
    done(std::move(response));
  }

  absl::StatusOr<const Session*> Find(const std::string& session_id) const override {
    const auto it = sessions_.find(session_id);
    if (it == sessions_.end()) return Unknown(session_id);
    return &it->second;
  }

  std::vector<const Session*> Sessions(v1::Role role) const override {
    std::vector<const Session*> out;
    for (const auto& [id, session] : sessions_) {
      if (role == v1::ROLE_UNSPECIFIED || session.identity.role() == role) out.push_back(&session);
    }
    return out;
  }

  absl::Status Drain(const std::string& instance_id) override {
    bool found = false;
    for (auto& [id, session] : sessions_) {
      if (session.identity.instance_id() != instance_id) continue;
      session.draining = found = true;
    }
    return found ? absl::OkStatus() : NoInstance(instance_id);
  }

  absl::Status Cordon(const std::string& instance_id, bool uncordon, WriteBatch* batch) override {
    const auto before = cordoned_.find(instance_id);
    v1::Role role = before == cordoned_.end() ? v1::ROLE_UNSPECIFIED : before->second;
    bool found = before != cordoned_.end();
    for (auto& [id, session] : sessions_) {
      if (session.identity.instance_id() != instance_id) continue;
      session.cordoned = !uncordon;
      role = session.identity.role();
      found = true;
    }
    const std::string key = kCordonedPrefix + instance_id;
    if (uncordon) {
      if (!found) return NoInstance(instance_id);
      cordoned_.erase(instance_id);
      batch->Erase(Table::kMeta, key);
      return absl::OkStatus();
    }
    cordoned_[instance_id] = role;
    v1::Worker row;
    row.set_instance_id(instance_id);
    row.set_role(role);
    batch->Put(Table::kMeta, key, row.SerializeAsString());
    return absl::OkStatus();
  }

  std::map<std::string, v1::Role> CordonedAway() const override {
    std::map<std::string, v1::Role> away = cordoned_;
    for (const auto& [id, session] : sessions_) away.erase(session.identity.instance_id());
    return away;
  }

  absl::Status Recover(StateStore* store) override {
    return store->Scan(Table::kMeta, kCordonedPrefix, [this](absl::string_view key, absl::string_view value) {
      v1::Worker row;
      row.ParseFromArray(value.data(), static_cast<int>(value.size()));
      cordoned_[std::string(key.substr(sizeof(kCordonedPrefix) - 1))] = row.role();
      return true;
    });
  }

  void Tick() override {
    const absl::Duration now = loop_->clock().Now();
    for (auto it = sessions_.begin(); it != sessions_.end();) {
      const auto next = std::next(it);
      if (now - it->second.last_heartbeat > lease_) Lose(it, "sent no heartbeat");
      it = next;
    }
  }

 private:
  static absl::Status Unknown(const std::string& session_id) {
    return WithReason(
        absl::NotFoundError(absl::StrCat("session \"", session_id, "\" is not known (any more): register again")),
        v1::UNKNOWN_SESSION);
  }
  absl::Status NoInstance(const std::string& instance_id) const {
    return absl::NotFoundError(
        absl::StrCat("no process \"", instance_id, "\" is registered; `rlhfctl workers list` names those that are"));
  }
  void Lose(std::map<std::string, Session>::iterator it, absl::string_view why) {
    const Session session = std::move(it->second);
    sessions_.erase(it);
    spdlog::warn("{} {} is lost: it {}", v1::Role_Name(session.identity.role()), session.identity.instance_id(),
                 std::string(why));
    for (FleetListener* listener : listeners_) listener->OnLost(session);
  }

  EventLoop* const loop_;
  const absl::Duration heartbeat_interval_, lease_;
  std::random_device device_;
  std::mt19937_64 random_{(static_cast<uint64_t>(device_()) << 32) | device_()};
  std::map<std::string, Session> sessions_;
  std::map<std::string, v1::Role> cordoned_;  // instances, also while they are away
  std::vector<FleetListener*> listeners_;
};

}  // namespace

std::unique_ptr<Fleet> MakeFleet(EventLoop* loop, absl::Duration heartbeat_interval, absl::Duration lease) {
  return std::make_unique<FleetImpl>(loop, heartbeat_interval, lease);
}

}  // namespace rlhf::coordinator
