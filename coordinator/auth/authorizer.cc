#include "coordinator/auth/authorizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/fleet_authorizer.h"
#include "common/status_util.h"
#include "common/tls.h"
#include "coordinator/auth/method_table.h"

namespace rlhf::coordinator {
namespace {

Caller CallerOfRow(const v1::TokenRow& row) {
  Caller caller;
  caller.subject = row.subject();
  caller.project = row.project();
  for (const int role : row.roles()) caller.roles.push_back(RoleName(static_cast<v1::TokenRole>(role)));
  return caller;
}

}  // namespace

absl::StatusOr<Caller> WhoseToken(const Tokens& tokens, const std::string& token, Denials* denials) {
  std::string why;
  const absl::StatusOr<v1::TokenRow> row = tokens.Verify(token, &why);
  if (!row.ok()) {
    denials->Note("", "/session", why);
    return row.status();
  }
  return CallerOfRow(*row);
}

Authorizer MakeApiAuthorizer(const Tokens* tokens, Denials* denials) {
  return [tokens, denials](const std::string& method, const std::string& bearer,
                           const std::string&) -> absl::StatusOr<Caller> {
    if (const MethodRule* rule = FindRule(Listener::kApi, method); rule != nullptr && rule->open) return Caller{};
    if (bearer.empty()) {
      denials->Note("", method, "no_token");
      return Unauthenticated("expected a bearer token (metadata \"authorization: Bearer rlhf_…\"), found none");
    }
    std::string why;
    absl::StatusOr<v1::TokenRow> row = tokens->Verify(bearer, &why);
    if (!row.ok()) {
      denials->Note("", method, why);
      return row.status();
    }
    Caller caller = CallerOfRow(*row);
    if (absl::Status status = CheckRole(Listener::kApi, method, caller.roles); !status.ok()) {
      denials->Note(caller.subject, method, "role");
      return status;
    }
    return caller;
  };
}

Authorizer MakeFleetAuthorizer(const std::string& trust_domain, Denials* denials) {
  return [trust_domain, denials](const std::string& method, const std::string&,
                                 const std::string& spiffe_id) -> absl::StatusOr<Caller> {
    absl::StatusOr<Caller> caller = CallerOfCertificate(spiffe_id, trust_domain);
    if (!caller.ok()) {
      denials->Note(ParseSpiffeId(spiffe_id).ok() ? spiffe_id : "", method, "certificate");
      return caller;
    }
    if (absl::Status status = CheckRole(Listener::kFleet, method, {caller->role}); !status.ok()) {
      denials->Note(spiffe_id, method, "role");
      return status;
    }
    return caller;
  };
}

absl::Status CheckProject(const Caller& caller, const std::string& project) {
  if (!caller.role.empty() || caller.project == "*" || caller.project == project) return absl::OkStatus();
  return WithReason(absl::PermissionDeniedError(absl::StrCat("this belongs to the project \"", project,
                                                             "\"; the caller's token is for \"", caller.project,
                                                             "\": use a token of that project")),
                    v1::PROJECT_NOT_ALLOWED);
}

}  // namespace rlhf::coordinator
