// Values that nobody may guess: of tokens and of browser sessions.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace rlhf::coordinator {

// `bytes` random bytes in hex. Internal when the system has none.
absl::StatusOr<std::string> RandomHex(int bytes);
// In constant time for equal lengths.
bool SecretsEqual(const std::string& a, const std::string& b);

}  // namespace rlhf::coordinator
