// Channels to the service: credentials, keepalive, message limits, and the retry policy (idempotent methods only).
#pragma once

#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"
#include "common/tls.h"

namespace rlhf::client {

struct ChannelOptions {
  std::string address;  // host:port
  TlsFiles tls;
  std::string server_name;   // what the server's certificate must be of (FleetServerName); empty: the address's host
  std::string bearer_token;  // API listener; sent with every call (TLS, or loopback with insecure)
  int max_message_bytes = 64 << 20;
};
absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(const ChannelOptions& options);

// A context with a deadline (and the bearer token's metadata, when the channel is plaintext and a token is given).
std::unique_ptr<grpc::ClientContext> MakeContext(absl::Duration timeout);

}  // namespace rlhf::client
