#include "common/rpc_server.h"

#include <grpc/grpc.h>

#include <atomic>
#include <map>
#include <memory>
#include <thread>
#include <utility>

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/auth_metadata_processor.h>
#include <prometheus/counter.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/call_deadline.h"
#include "common/clock.h"
#include "common/connection_limit.h"
#include "common/grpc_log.h"
#include "common/in_process_channel.h"
#include "common/rpc_interceptor.h"
#include "common/status_util.h"

namespace rlhf {
namespace {

// Clients ping every 20 s, also between calls; anything a good deal faster than that is abuse.
constexpr int kMinClientPingMs = 10'000;
constexpr int kServerPingMs = 20'000;
constexpr int kPingTimeoutMs = 10'000;
constexpr int kHandshakeTimeoutMs = 20'000;  // gRPC's own is two minutes
// At a stop, from the end of the last call to that of the connections that are left.
constexpr absl::Duration kLastAnswersArrive = absl::Milliseconds(500);

// Lets calls in or refuses them, before any handler runs. Runs on gRPC's polling threads: authorizers must not block.
class AuthorizingProcessor final : public grpc::AuthMetadataProcessor {
 public:
  AuthorizingProcessor(std::shared_ptr<const Authorizer> authorizer, std::shared_ptr<RpcMetrics> metrics)
      : authorizer_(std::move(authorizer)), metrics_(std::move(metrics)) {}
  bool IsBlocking() const override { return false; }

  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* context, OutputMetadata* consumed,
                       OutputMetadata* response) override {
    const auto path = metadata.find(":path");
    if (path == metadata.end()) return grpc::Status(grpc::StatusCode::INTERNAL, "the call has no method");
    const std::string method(path->second.data(), path->second.size());
    const absl::StatusOr<Caller> caller = (*authorizer_)(method, BearerTokenOf(metadata), SpiffeIdOf(*context));
    if (caller.ok()) return grpc::Status::OK;
    const grpc::Status refused = ToGrpc(caller.status());
    metrics_->Count(method, refused.error_code(), absl::ZeroDuration());
    return refused;
  }

 private:
  const std::shared_ptr<const Authorizer> authorizer_;
  const std::shared_ptr<RpcMetrics> metrics_;
};

class GrpcServer final : public RpcServer {
 public:
  ~GrpcServer() override { Shutdown(absl::ZeroDuration()); }

  absl::Status Listen(const RpcServerOptions& options) {
    InstallGrpcLog();
    LimitConnections();
    if (options.metrics != nullptr) ExportConnectionsRefused(options.metrics);
    auto credentials = MakeServerCredentials(options.tls, options.require_client_certificate);
    if (!credentials.ok()) return Annotate(credentials.status(), absl::StrCat("listener ", options.address));
    if (!options.tls.insecure && !options.authorizer) {
      return absl::InvalidArgumentError(absl::StrCat("listener ", options.address, ": TLS without an authorizer"));
    }
    auto metrics = std::make_shared<RpcMetrics>(options.metrics);
    calls_ = metrics;
    std::shared_ptr<const Authorizer> authorizer;
    if (!options.tls.insecure) {
      authorizer = std::make_shared<const Authorizer>(options.authorizer);
      (*credentials)->SetAuthMetadataProcessor(std::make_shared<AuthorizingProcessor>(authorizer, metrics));
    }

    if (options.require_client_certificate && !options.tls.insecure) WatchHandshakes(options);

    static const bool plugins [[maybe_unused]] = [] {
      grpc::EnableDefaultHealthCheckService(true);
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
      return true;
    }();
    grpc::ServerBuilder builder;
    builder.AddListeningPort(options.address, *credentials, &port_);
    for (grpc::Service* service : options.services) builder.RegisterService(service);
    if (options.otherwise != nullptr) builder.RegisterCallbackGenericService(options.otherwise);
    builder.SetMaxReceiveMessageSize(options.max_message_bytes);
    builder.SetMaxSendMessageSize(options.max_message_bytes);
    // A compressed message is bounded by its size as it came, not by what it becomes: 64 MB of it may be 64 GB.
    builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
    builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
    builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
    // Only reflection still needs gRPC's synchronous threads.
    builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
    // A second server on a taken port must fail, not share it.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kServerPingMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingTimeoutMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinClientPingMs);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 5);
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
    // The server keeps what is behind the object.
    builder.SetResourceQuota(options.receive_memory != nullptr ? *options.receive_memory
                                                               : *MakeReceiveMemory(kReceiveMemoryMb));
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
    interceptors.push_back(MakeCallInterceptorFactory(authorizer, metrics));
    builder.experimental().SetInterceptorCreators(std::move(interceptors));
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ", options.address,
                                                 ": the port is taken, the address is not of this host, or a service "
                                                 "was registered twice"));
    }
    SetServing(options.serving);
    return absl::OkStatus();
  }

  int port() const override { return port_; }
  std::shared_ptr<grpc::Channel> InProcess() {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);  // the server's own answers
    return server_->InProcessChannel(arguments);
  }
  void SetServing(bool serving) override {
    if (auto* health = server_->GetHealthCheckService(); health != nullptr) health->SetServingStatus(serving);
  }
  void Shutdown(absl::Duration grace) override {
    if (server_ == nullptr || shut_down_.exchange(true)) return;
    // gRPC waits until all connections are closed, and whoever keeps one without a call on it would have all the grace.
    absl::Notification over;
    std::thread cutter([this, &over] {
      absl::Duration quiet = Clock::Real()->Now();
      while (!over.WaitForNotificationWithTimeout(absl::Milliseconds(10))) {
        const absl::Duration now = Clock::Real()->Now();
        if (calls_->open() > 0) quiet = now;
        if (now - quiet < kLastAnswersArrive) continue;
        return grpc_server_cancel_all_calls(server_->c_server());
      }
    });
    server_->Shutdown(CallDeadline(grace));
    server_->Wait();
    over.Notify();
    cutter.join();
    handshakes_.reset();
  }

 private:
  void WatchHandshakes(const RpcServerOptions& options) {
    std::map<HandshakeRefusal, prometheus::Counter*> counters;
    if (options.metrics != nullptr) {
      for (const HandshakeRefusal refusal : kHandshakeRefusals) {
        counters[refusal] =
            &options.metrics->Counter("rlhf_auth_failures_total", "Calls refused for want of identity or permission.",
                                      {{"reason", HandshakeReason(refusal)}});
      }
    }
    handshakes_ = std::make_unique<HandshakeWatch>(
        [counters = std::move(counters), refused = options.handshake_refused](HandshakeRefusal refusal) {
          if (const auto counter = counters.find(refusal); counter != counters.end()) counter->second->Increment();
          if (refused) refused(HandshakeReason(refusal));
        });
  }

  std::unique_ptr<HandshakeWatch> handshakes_;
  std::shared_ptr<const RpcMetrics> calls_;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<bool> shut_down_{false};
  int port_ = 0;
};

}  // namespace

std::shared_ptr<grpc::ResourceQuota> MakeReceiveMemory(int megabytes) {
  auto memory = std::make_shared<grpc::ResourceQuota>("received");
  memory->Resize(static_cast<size_t>(megabytes) << 20);
  return memory;
}

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const RpcServerOptions& options) {
  auto server = std::make_unique<GrpcServer>();
  RLHF_RETURN_IF_ERROR(server->Listen(options));
  return server;
}

std::shared_ptr<grpc::Channel> InProcessChannel(RpcServer& server) {
  return static_cast<GrpcServer&>(server).InProcess();  // the only kind that Start makes
}

}  // namespace rlhf
