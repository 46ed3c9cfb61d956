// The first tokens of an installation: an administrator makes one (rlhfctl token create --bootstrap) and puts it into a
// file (--bootstrap-token-file), or the coordinator makes one of each role and writes them to a file
// (--bootstrap-tokens, as `rlhfctl up` has it do). Later there are tokens, and neither does anything.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/auth/tokens.h"
#include "coordinator/oversight.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

// The row that makes "rlhf_<12 hex digits>_<64 hex digits>" an admin token of all projects for 30 days. InvalidArgument
// when it does not look like one.
absl::StatusOr<v1::TokenRow> BootstrapTokenRow(const std::string& token, absl::Time now);

// Stores the file's token where the store has none, and returns its id, which is to be audited; "" where there are
// tokens. Before Tokens::Open, which then reads it. Blocks until it is durable.
absl::StatusOr<std::string> TakeUpBootstrapToken(StateStore* store, const std::string& file, absl::Time now);
absl::Status AuditBootstrapToken(Oversight* oversight, StateStore* store, const std::string& id);

// Where there are no tokens: makes one of each role, for a year, and writes their secrets to the file as JSON, role to
// secret. On the loop; blocks until they are durable.
absl::Status MintFirstTokens(Tokens* tokens, Oversight* oversight, StateStore* store, const std::string& file);

}  // namespace rlhf::coordinator
