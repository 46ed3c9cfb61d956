// Who may call what: one table of full method names to roles for each listener. What is not in the table is refused.
// Immutable after the first use; thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/rpc_server.h"

namespace rlhf::coordinator {

enum class Listener { kFleet, kApi };

struct MethodRule {
  std::string method;              // "/rlhf.v1.JobService/SubmitJob"
  std::vector<std::string> roles;  // any one of these; empty together with `open` false: nobody
  bool open = false;               // callable without a token (the API listener's health check only)
};

// nullptr when the table does not know the method.
const MethodRule* FindRule(Listener listener, const std::string& method);
const std::vector<MethodRule>& Rules(Listener listener);
// PermissionDenied with ROLE_NOT_ALLOWED, naming the roles that would do.
absl::Status CheckRole(Listener listener, const std::string& method, const std::vector<std::string>& roles);

}  // namespace rlhf::coordinator
