// gRPC's own log lines as lines of ours, and the handshakes that a listener of this process refused, of which gRPC
// tells by its log alone. Only looks on: verification stays gRPC's and OpenSSL's.
#pragma once

#include <functional>
#include <string>

namespace rlhf {

// From now on gRPC logs through spdlog, at its own severities and above its own threshold (GRPC_VERBOSITY, default
// ERROR). Of failed handshakes at most one line a second is written, which says how many were left out. Once a process
// suffices; thread-safe.
void InstallGrpcLog();

// Why a client that must show a certificate was refused.
enum class HandshakeRefusal {
  kNoCertificate,
  kUntrusted,  // no chain to our CA, or a signature that is not its
  kExpired,
  kOther,  // any other fault that verification found, as one that is not valid yet
};
inline constexpr HandshakeRefusal kHandshakeRefusals[] = {HandshakeRefusal::kNoCertificate,
                                                          HandshakeRefusal::kUntrusted, HandshakeRefusal::kExpired,
                                                          HandshakeRefusal::kOther};
// The label `reason` of rlhf_auth_failures_total: "handshake_no_certificate", …
std::string HandshakeReason(HandshakeRefusal refusal);

// While it lives, `refused` is called for every handshake that any listener of this process refused for the client's
// certificate or want of one: gRPC says neither which listener it was nor the client's address. Bytes that are no TLS,
// and peers that refuse our certificate, are not told of. Needs InstallGrpcLog. `refused` runs on gRPC's threads, one
// call at a time, and must return at once; not after the destructor.
class HandshakeWatch {
 public:
  explicit HandshakeWatch(std::function<void(HandshakeRefusal)> refused);
  ~HandshakeWatch();
  HandshakeWatch(const HandshakeWatch&) = delete;
  HandshakeWatch& operator=(const HandshakeWatch&) = delete;

 private:
  const std::function<void(HandshakeRefusal)> refused_;
};

}  // namespace rlhf
