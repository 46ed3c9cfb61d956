// What the ranks of a learner group do together. One implementation each for Gloo and NCCL (both through c10d) and for
// a single rank.
//
// Calls are made by one thread in the same order on every rank. Errors (a rank died, the timeout passed) are
// Unavailable; afterwards the collective is broken: destroy it and join the next group.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "model/libtorch.h"

namespace rlhf::learner {

class Collective {
 public:
  virtual ~Collective() = default;
  virtual int rank() const = 0;
  virtual int world_size() const = 0;
  virtual absl::Status AllReduceSum(torch::Tensor tensor) = 0;  // in place, contiguous
  virtual absl::Status Broadcast(torch::Tensor tensor, int root) = 0;
  // Starts an in-place sum that runs while the caller goes on; Wait in the order of starting.
  class Pending {
   public:
    virtual ~Pending() = default;
    virtual absl::Status Wait() = 0;
  };
  virtual absl::StatusOr<std::unique_ptr<Pending>> StartAllReduceSum(torch::Tensor tensor) = 0;
  // The same, of a tensor [world_size · n] of which this rank wants only its own part, elements [rank · n,
  // (rank + 1) · n), summed in place; what the other parts are afterwards is not said.
  virtual absl::StatusOr<std::unique_ptr<Pending>> StartReduceScatterSum(torch::Tensor tensor) = 0;
  // Of a contiguous tensor [world_size · n] each rank has filled its own part: afterwards all have all parts.
  virtual absl::Status AllGather(torch::Tensor tensor) = 0;
  // True when every rank says ok; all ranks learn the same answer.
  virtual absl::StatusOr<bool> Vote(bool ok) = 0;
  // Wakes a call blocked in another thread; it fails as Unavailable.
  virtual void Abort() = 0;
  // Abort was called: who computes between two calls may stop at once (any thread). A single rank's is never given up.
  virtual bool aborted() const = 0;
};

std::unique_ptr<Collective> MakeSingleRank();

// At a process's start, before it has threads: c10d's NCCL watchdog neither ends the process nor aborts a group by its
// own timeouts (GroupOptions::timeout does). What an operator has set in the environment stays.
void LeaveTimeoutsToUs();

struct GroupOptions {
  int rank = 0, world_size = 1;
  std::string prefix;      // "<job>/<epoch>/": keys of different epochs never meet
  std::string store_host;  // rank 0's TCPStore
  int store_port = 0;
  absl::Duration timeout = absl::Seconds(30);
  torch::Device device = torch::kCPU;  // of the tensors. CUDA: NCCL; else Gloo over interface_address
  std::string interface_address = "127.0.0.1";
};
// Rank 0's rendezvous: a TCPStore on a free port of one address (IPv4 or IPv6), kept alive by the returned object.
class Rendezvous {
 public:
  virtual ~Rendezvous() = default;
  virtual int port() const = 0;
  static absl::StatusOr<std::unique_ptr<Rendezvous>> Host(const std::string& interface_address, absl::Duration timeout);
};
absl::StatusOr<std::unique_ptr<Collective>> ConnectGroup(const GroupOptions& options);

}  // namespace rlhf::learner
