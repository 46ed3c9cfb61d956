// "HOST:PORT", as listeners and peers are named.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace rlhf {

struct HostPort {
  std::string host;  // without brackets; "0.0.0.0" when none is given
  int port = 0;      // 0: any free one
};
// InvalidArgument for anything else; `what` begins the message.
absl::StatusOr<HostPort> ParseHostPort(const std::string& address, const std::string& what);
// "HOST:PORT"; an IPv6 address, as Kubernetes gives a pod's, gets its brackets.
std::string JoinHostPort(const std::string& host, int port);

}  // namespace rlhf
