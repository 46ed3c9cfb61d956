// What the listeners ask before any handler runs, and the project check that handlers make.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "common/rpc_server.h"
#include "coordinator/auth/denials.h"
#include "coordinator/auth/tokens.h"

namespace rlhf::coordinator {

// Who a bearer token belongs to, for a sign-in: subject, roles, project. Unauthenticated, noted, when to nobody.
absl::StatusOr<Caller> WhoseToken(const Tokens& tokens, const std::string& token, Denials* denials);
// Bearer tokens; roles by the method table. Caller: subject, roles and project of the token.
Authorizer MakeApiAuthorizer(const Tokens* tokens, Denials* denials);
// SPIFFE ids of verified client certificates. `trust_domain` empty: any domain the CA has signed. Caller: subject is
// the certificate's instance, role its role.
Authorizer MakeFleetAuthorizer(const std::string& trust_domain, Denials* denials);

// PermissionDenied with PROJECT_NOT_ALLOWED, unless the caller is of the fleet, or of this project, or of all.
absl::Status CheckProject(const Caller& caller, const std::string& project);

}  // namespace rlhf::coordinator
