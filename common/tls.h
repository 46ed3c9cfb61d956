// Certificates: what a process presents and whom it trusts. Files are read again when they change (every 10 s), without
// a restart.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include "absl/status/statusor.h"

namespace rlhf {

struct TlsFiles {
  bool insecure = false;  // plaintext; must be asked for
  std::string ca_file;    // PEM; whom we trust
  std::string cert_file;  // PEM chain; who we are
  std::string key_file;   // PEM
};

// Fleet listener: requires and verifies a client certificate. API listener: none asked for.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const TlsFiles& files,
                                                                               bool require_client_certificate);
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(const TlsFiles& files);

// spiffe://DOMAIN/role/ROLE/instance/ID
struct FleetIdentity {
  std::string domain, role, instance;
};
absl::StatusOr<FleetIdentity> ParseSpiffeId(const std::string& uri);

// A CA and certificates of its (ECDSA P-256), for `rlhfctl pki`, `rlhfctl up` and tests; SANs: the SPIFFE URI, the
// names of fleet_names.h, localhost, 127.0.0.1 and extra hosts.
struct CertificateAuthority {
  std::string cert_pem, key_pem;
};
absl::StatusOr<CertificateAuthority> MakeCertificateAuthority(const std::string& domain, int days);
struct IssuedCertificate {
  std::string cert_pem, key_pem;
};
absl::StatusOr<IssuedCertificate> IssueCertificate(const CertificateAuthority& ca, const std::string& domain,
                                                   const std::string& role, const std::string& instance,
                                                   const std::vector<std::string>& hosts, int days);

}  // namespace rlhf
