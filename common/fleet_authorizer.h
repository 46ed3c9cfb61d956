// Who may call the listeners of the fleet, by the SPIFFE id of a verified client certificate.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/rpc_server.h"

namespace rlhf {

// With the reason UNAUTHENTICATED_CALLER.
absl::Status Unauthenticated(const std::string& message);

// The owner of a certificate: subject is its instance, role its role. Unauthenticated (UNAUTHENTICATED_CALLER) without
// a SPIFFE id of the fleet, and with one of another trust domain. `trust_domain` empty: any that the CA has signed.
absl::StatusOr<Caller> CallerOfCertificate(const std::string& spiffe_id, const std::string& trust_domain);

// Of a listener that serves one role: the methods of these services are for it, gRPC's health is for every member of
// the fleet, and what is not listed is refused. Full names: "rlhf.v1.WeightsService".
Authorizer AuthorizeOneRole(const std::string& role, const std::vector<std::string>& services,
                            const std::string& trust_domain);

}  // namespace rlhf
