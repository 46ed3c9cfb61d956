// Tokens of an installation without an admin: an administrator makes one (rlhfctl token create --bootstrap) and puts it
// into a file (--bootstrap-token-file), or the coordinator makes one of each role and writes them to a file
// (--bootstrap-tokens, as `rlhfctl up` has it do). While a token works that is admin of all projects, neither does
// anything. On the loop, at start; they block until what they took or made is durable, with its audit record.
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

// Accepts the file's token, where nobody is admin. One that was accepted before does not come back when it has expired
// or was revoked. Fails where there are no tokens at all; else the service goes on without an admin, and the log says
// what to do.
absl::Status TakeUpBootstrapToken(Tokens* tokens, Oversight* oversight, StateStore* store, const std::string& file,
                                  absl::Time now);

// Makes one of each role, for a year, and writes their secrets to the file as JSON, role to secret, where nobody is
// admin. Fails like the other.
absl::Status MintFirstTokens(Tokens* tokens, Oversight* oversight, StateStore* store, const std::string& file);

}  // namespace rlhf::coordinator
