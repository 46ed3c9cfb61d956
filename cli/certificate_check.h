// Reads a certificate's end.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/connection.h"

namespace rlhf::cli {

// Of the first certificate of a PEM file; InvalidArgument when there is none.
absl::StatusOr<absl::Time> ExpiryOfFile(const std::string& pem_file);
// The CA file that a connection would trust; empty without TLS.
absl::StatusOr<std::string> CaFileOf(const ConnectionFlags& flags);

}  // namespace rlhf::cli
