// Channels to the service: credentials, keepalive, message limits, and the retry policy (idempotent methods only). Made
// while tracing is on, a channel tells servers the caller's trace context.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"
#include "common/tls.h"

namespace rlhf::client {

struct ChannelOptions {
  // host:port. Of several coordinators (one leads, the others stand by): "IP:PORT,IP:PORT", all IPv4 or all IPv6, or
  // "dns:///NAME:PORT" for a name with all their addresses. Calls then go to those whose gRPC health says SERVING.
  std::string address;
  TlsFiles tls;
  // What the server's certificate must be of (FleetServerName); empty: the address's host, of several with different
  // hosts the fleet's name of a coordinator.
  std::string server_name;
  std::string bearer_token;  // API listener; sent with every call (TLS, or loopback with insecure)
  int max_message_bytes = 64 << 20;
};
absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(const ChannelOptions& options);

// Takes no compressed messages: their bound holds before they are unpacked only, so a server that is not trusted could
// answer with one that becomes a thousand times as large. For channels that are not made by MakeChannel.
void RefuseCompression(grpc::ChannelArguments* arguments);

// What gRPC is told to connect to; for several addresses the arguments also get the rule by which it chooses. The
// arguments get the retry policy in any case. InvalidArgument when a list is not one of IP addresses with ports.
absl::StatusOr<std::string> TargetOf(const std::string& address, grpc::ChannelArguments* arguments);

// A context with a deadline (and the bearer token's metadata, when the channel is plaintext and a token is given).
std::unique_ptr<grpc::ClientContext> MakeContext(absl::Duration timeout);

}  // namespace rlhf::client
