// Files and folders that only their owner may read, and secrets to put into them.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace rlhf::cli {

// Durably, with mode 0600 from its first moment on.
absl::Status WriteSecretFile(const std::string& path, const std::string& content);
// A folder that only its owner may look into, its parents as the umask makes them. One that is there stays as it is:
// whoever made it may have shared it with a group.
absl::Status MakePrivateFolder(const std::string& path);
// A token that no coordinator knows yet: "rlhf_<12 hex digits>_<64 hex digits>".
absl::StatusOr<std::string> NewToken();

}  // namespace rlhf::cli
