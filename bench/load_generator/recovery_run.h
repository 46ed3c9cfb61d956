// How long a coordinator that was killed with SIGKILL in the middle of its work takes until it serves again.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/load_generator/options.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::bench {

struct RecoveryResult {
  double fill_seconds = 0;      // how long the samples took, through the real path
  double ready_seconds = 0;     // from its start until all listeners are open
  double answered_seconds = 0;  // until the event loop has restored the job and answers with its ledger
  double store_mb = 0;
  double resident_mb = 0;          // then
  v1::LedgerCounts before, after;  // the last counts seen before the kill, and the first after it
  std::vector<std::string> violations;
};

// Lets the simulated fleet fill the store until so many samples were issued, kills, starts again, checks the ledger.
absl::StatusOr<RecoveryResult> RunRecovery(const LoadOptions& options, int64_t samples);
std::string ToJson(const RecoveryResult& result);

}  // namespace rlhf::bench
