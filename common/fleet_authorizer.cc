#include "common/fleet_authorizer.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_util.h"
#include "common/tls.h"

namespace rlhf {
namespace {

bool IsOf(const std::string& method, const std::string& service) {
  return absl::StartsWith(method, absl::StrCat("/", service, "/"));
}

}  // namespace

absl::Status Unauthenticated(const std::string& message) {
  return WithReason(absl::UnauthenticatedError(message), v1::UNAUTHENTICATED_CALLER);
}

absl::StatusOr<Caller> CallerOfCertificate(const std::string& spiffe_id, const std::string& trust_domain) {
  const absl::StatusOr<FleetIdentity> identity = ParseSpiffeId(spiffe_id);
  if (!identity.ok())
    return Unauthenticated(absl::StrCat("expected a client certificate of the fleet: ", identity.status().message()));
  if (!trust_domain.empty() && identity->domain != trust_domain) {
    return Unauthenticated(
        absl::StrCat("expected a certificate of the trust domain ", trust_domain, ", found ", identity->domain));
  }
  Caller caller;
  caller.subject = identity->instance;
  caller.role = identity->role;
  return caller;
}

Authorizer AuthorizeOneRole(const std::string& role, const std::vector<std::string>& services,
                            const std::string& trust_domain) {
  return [role, services, trust_domain](const std::string& method, const std::string& /*bearer_token*/,
                                        const std::string& spiffe_id) -> absl::StatusOr<Caller> {
    RLHF_ASSIGN_OR_RETURN(Caller caller, CallerOfCertificate(spiffe_id, trust_domain));
    if (IsOf(method, "grpc.health.v1.Health")) return caller;
    if (std::none_of(services.begin(), services.end(),
                     [&method](const std::string& service) { return IsOf(method, service); }))
      return absl::PermissionDeniedError(absl::StrCat(method, " is not served here"));
    if (caller.role != role) {
      return absl::PermissionDeniedError(
          absl::StrCat(method, " is for the role ", role, "; the certificate's role is ", caller.role));
    }
    return caller;
  };
}

}  // namespace rlhf
