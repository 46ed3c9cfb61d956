// What every call passes on a server: who calls (CallerOf), and how it ended (metrics). Internal to rpc_server, but for
// BearerTokenOf.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/server_interceptor.h>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "common/rpc_server.h"

namespace rlhf {

// Counts calls by service, method and code. Thread-safe. Does nothing without a registry.
class RpcMetrics {
 public:
  explicit RpcMetrics(MetricsRegistry* registry) : registry_(registry) {}
  // method "/rlhf.v1.JobService/GetJob". Methods no linked proto knows share one label: callers cannot invent series.
  void Count(const std::string& method, grpc::StatusCode code, absl::Duration took);
  // Calls that have begun and are not over; with or without a registry.
  void Opened() { ++open_; }
  void Closed() { --open_; }
  int open() const { return open_; }

 private:
  struct Labels {
    std::string service, method;
  };
  const Labels& LabelsOf(const std::string& method) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  MetricsRegistry* const registry_;
  std::atomic<int> open_{0};
  absl::Mutex mu_;
  absl::flat_hash_map<std::string, Labels> labels_ ABSL_GUARDED_BY(mu_);
};

// The bearer token of "authorization: Bearer TOKEN", or empty.
std::string BearerTokenOf(const std::multimap<grpc::string_ref, grpc::string_ref>& metadata);
// The SPIFFE id of the verified client certificate, or empty.
std::string SpiffeIdOf(const grpc::AuthContext& context);

// `authorizer` is null on a plaintext listener: every caller is then Caller{"insecure", all roles, project "*"}.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeCallInterceptorFactory(
    std::shared_ptr<const Authorizer> authorizer, std::shared_ptr<RpcMetrics> metrics);

}  // namespace rlhf
