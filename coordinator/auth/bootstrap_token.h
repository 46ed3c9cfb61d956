// The first admin token of an installation, which an administrator makes (rlhfctl token create --bootstrap) and puts
// into a file.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

// The row that makes "rlhf_<12 hex digits>_<64 hex digits>" an admin token of all projects for 30 days. InvalidArgument
// when it does not look like one.
absl::StatusOr<v1::TokenRow> BootstrapTokenRow(const std::string& token, absl::Time now);

}  // namespace rlhf::coordinator
