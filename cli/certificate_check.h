// Reads a certificate's end, and whom it is for.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/connection.h"
#include "common/tls.h"

namespace rlhf::cli {

// Of the first certificate of a PEM file; InvalidArgument when there is none.
absl::StatusOr<absl::Time> ExpiryOfFile(const std::string& pem_file);
struct CertificateNames {
  FleetIdentity identity;
  std::vector<std::string> hosts;  // its other names and addresses, but those that every certificate of its role has
};
// Of the first certificate of a PEM file; InvalidArgument when it is none of a fleet.
absl::StatusOr<CertificateNames> NamesOfFile(const std::string& pem_file);
// OK when a PEM's first certificate is the CA of the domain, as `rlhfctl pki init` makes it, and the key is its own.
absl::Status CheckAuthority(const CertificateAuthority& ca, const std::string& domain);
// The CA file that a connection would trust; empty without TLS.
absl::StatusOr<std::string> CaFileOf(const ConnectionFlags& flags);

}  // namespace rlhf::cli
