// Which rollout worker generates which sample of a job, in memory. Loop thread only.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "coordinator/ledger.h"

namespace rlhf::coordinator {

// A sample that a rollout worker generates. Deadlines are never stored: after a restart every lease has one full life.
struct HeldLease {
  std::string instance_id;  // whose it is, whatever session it has: nobody else may submit it, return it or report it
  std::string session_id;   // empty: of before a restart, until a heartbeat claims it
  int32_t attempt = 0;
  absl::Duration since, last_seen, last_progress;
  int tokens_done = 0;
  bool loading = false;  // its worker says that it fetches or loads what it needs for it
};

// A job's leases, and how many of them each worker's session has.
class LeaseTable {
 public:
  using Map = std::map<SampleKey, HeldLease>;
  Map::const_iterator begin() const { return leases_.begin(); }
  Map::const_iterator end() const { return leases_.end(); }
  Map::const_iterator find(const SampleKey& key) const { return leases_.find(key); }
  // Its session and instance stay as they are; other fields may be changed.
  HeldLease* Find(const SampleKey& key) {
    const auto it = leases_.find(key);
    return it == leases_.end() ? nullptr : &it->second;
  }
  bool empty() const { return leases_.empty(); }
  size_t workers() const { return held_.size(); }
  // Those of its workers that have none of another table's leases.
  size_t WorkersBeside(const LeaseTable& other) const {
    size_t beside = 0;
    for (const auto& [session_id, leases] : held_) beside += other.held_.count(session_id) == 0 ? 1 : 0;
    return beside;
  }
  size_t HeldBy(const std::string& session_id) const {
    const auto it = held_.find(session_id);
    return it == held_.end() ? 0 : it->second;
  }
  void Set(const SampleKey& key, HeldLease lease) {
    erase(key);
    ++held_[lease.session_id];
    leases_[key] = std::move(lease);
  }
  // The lease of a worker that reports it, perhaps under a new session; its other fields may be changed.
  HeldLease& Claim(const SampleKey& key, const std::string& session_id) {
    const auto it = leases_.find(key);
    if (it != leases_.end() && it->second.session_id == session_id) return it->second;
    HeldLease lease = it == leases_.end() ? HeldLease() : it->second;
    lease.session_id = session_id;
    Set(key, std::move(lease));
    return leases_.at(key);
  }
  void erase(const SampleKey& key) {
    const auto it = leases_.find(key);
    if (it == leases_.end()) return;
    if (const auto holder = held_.find(it->second.session_id); --holder->second == 0) held_.erase(holder);
    leases_.erase(it);
  }
  void clear() {
    leases_.clear();
    held_.clear();
  }

 private:
  Map leases_;
  std::map<std::string, size_t> held_;
};

}  // namespace rlhf::coordinator
