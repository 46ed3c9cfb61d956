// One gRPC listener: credentials, an authorizer that sees every call before its handler, health, reflection, keepalive,
// limits, metrics.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>

#include "absl/status/statusor.h"
#include "common/metrics.h"
#include "common/tls.h"

namespace rlhf {

// What a listener learnt about a caller; handlers read it with CallerOf.
struct Caller {
  std::string subject;             // token's subject, or certificate's instance; "insecure" without TLS
  std::string role;                // fleet: "rollout_worker", "learner", "reward_server", "coordinator"
  std::vector<std::string> roles;  // API: "viewer", "submitter", …
  std::string project;             // API: the token's project, "*" for all
  std::string method;              // the call, "/rlhf.v1.JobService/SubmitJob"; the listener's to say
};

// Decides on (method "/rlhf.v1.JobService/SubmitJob", bearer token or empty, SPIFFE id or empty). Unauthenticated or
// PermissionDenied refuse.
using Authorizer = std::function<absl::StatusOr<Caller>(const std::string& method, const std::string& bearer_token,
                                                        const std::string& spiffe_id)>;

// A bound on what callers have sent and nobody has read to its end (a message that is half there), for the servers that
// share it. Past it some of those calls end, RESOURCE_EXHAUSTED, and connections without a call are closed.
inline constexpr int kReceiveMemoryMb = 1024;
std::shared_ptr<grpc::ResourceQuota> MakeReceiveMemory(int megabytes);

struct RpcServerOptions {
  std::string address;  // "127.0.0.1:0" binds a free port
  TlsFiles tls;
  bool require_client_certificate = false;
  Authorizer authorizer;  // not called with tls.insecure
  int max_message_bytes = 64 << 20;
  int max_concurrent_streams = 1000;
  std::shared_ptr<grpc::ResourceQuota> receive_memory;  // null: kReceiveMemoryMb of its own
  std::vector<grpc::Service*> services;                 // not owned; outlive the server
  grpc::CallbackGenericService* otherwise = nullptr;    // answers what no service has; of this server alone
  // When set: grpc_server_handled_total, grpc_server_handling_seconds, rlhf_connections_refused_total; where a
  // certificate is required, also rlhf_auth_failures_total{reason="handshake_…"}.
  MetricsRegistry* metrics = nullptr;
  // Called with that reason of each handshake that was refused where a certificate is required (HandshakeWatch says
  // what is known). On gRPC's threads; must return at once; not after Shutdown.
  std::function<void(const std::string& reason)> handshake_refused;
  bool serving = true;  // what gRPC health says from the start
};

class RpcServer {
 public:
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const RpcServerOptions& options);
  virtual ~RpcServer() = default;
  virtual int port() const = 0;
  virtual void SetServing(bool serving) = 0;  // gRPC health
  // Stops accepting, lets calls finish until the grace has passed, then cancels them. Blocks.
  virtual void Shutdown(absl::Duration grace) = 0;
};

Caller CallerOf(const grpc::ServerContextBase& context);

}  // namespace rlhf
