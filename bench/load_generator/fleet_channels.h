// Certificates and connections for simulated processes: each has its own, as real ones do.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"
#include "common/tls.h"

namespace rlhf::bench {

class FleetChannels {
 public:
  // Makes a throw-away CA and writes ca.pem and the coordinator's certificate under `dir`. insecure: neither.
  static absl::StatusOr<FleetChannels> Make(const std::string& dir, bool insecure);
  TlsFiles coordinator() const;  // what the coordinator is started with
  TlsFiles api() const;          // for the API listener: the CA only
  // A certificate of a role in files, for a process or a server of its own.
  absl::StatusOr<TlsFiles> Issue(const std::string& role, const std::string& instance) const;
  // `address` may be a list, of coordinators on 127.0.0.1. Credentials are kept in memory: a thousand watched files
  // would cost a thousand threads.
  absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const std::string& address, const std::string& role,
                                                         const std::string& instance) const;

 private:
  std::string dir_;
  bool insecure_ = false;
  CertificateAuthority ca_;
};

}  // namespace rlhf::bench
