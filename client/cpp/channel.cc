#include "client/cpp/channel.h"

#include <chrono>
#include <map>
#include <utility>
#include <vector>

#include <grpcpp/support/client_interceptor.h>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/status_util.h"

namespace rlhf::client {
namespace {

// Half of what the listeners tolerate, so that a late ping is never a strike.
constexpr int kPingMs = 20'000;
constexpr int kPingTimeoutMs = 10'000;
constexpr int kFirstReconnectMs = 100;
constexpr int kLastReconnectMs = 2'000;

// Calls that may be sent twice: they read, they carry a request id or a fencing token, or saying them twice means the
// same. LeasePrompts is not among them: a lost answer's leases are revoked by their lease time, not given out twice.
const std::map<std::string, std::vector<std::string>>& IdempotentMethods() {
  static const auto* const methods = new std::map<std::string, std::vector<std::string>>{
      {"AdminService", {"ListWorkers", "DrainWorker", "CordonWorker", "ListTokens", "RevokeToken"}},
      {"ArtifactService",
       {"StartUpload", "RegisterArtifact", "GetArtifact", "ListArtifacts", "SetAlias", "PinArtifact"}},
      {"FeedbackService", {"SubmitFeedback", "GetFeedbackStats"}},
      {"FleetService", {"Register", "Heartbeat", "SubmitSamples", "ReturnLeases"}},
      {"JobService",
       {"SubmitJob", "ValidateJob", "GetJob", "ListJobs", "CancelJob", "PauseJob", "ResumeJob", "GetLedger",
        "ListSamples", "ListMetrics", "ExplainJob"}},
      {"LearnerService",
       {"JoinGroup", "PublishRendezvous", "CommitStep", "GetCommitted", "ReportProgress", "ReportCheckpoint"}},
      {"OversightService",
       {"ListGates", "HaltService", "ResumeService", "GetServiceState", "ListAudit", "VerifyAudit"}},
      {"RewardService", {"Score"}},
      {"WeightsService", {"GetManifest"}}};
  return *methods;
}

std::string ServiceConfig() {
  nlohmann::json names = nlohmann::json::array();
  for (const auto& [service, methods] : IdempotentMethods()) {
    for (const std::string& method : methods) {
      names.push_back({{"service", absl::StrCat("rlhf.v1.", service)}, {"method", method}});
    }
  }
  const nlohmann::json retry = {{"maxAttempts", 4},
                                {"initialBackoff", "0.1s"},
                                {"maxBackoff", "2s"},
                                {"backoffMultiplier", 2},
                                {"retryableStatusCodes", {"UNAVAILABLE"}}};
  const nlohmann::json config = {
      {"methodConfig", nlohmann::json::array({{{"name", std::move(names)}, {"retryPolicy", retry}}})}};
  return config.dump();
}

class BearerCredentials final : public grpc::MetadataCredentialsPlugin {
 public:
  explicit BearerCredentials(const std::string& token) : header_(absl::StrCat("Bearer ", token)) {}
  bool IsBlocking() const override { return false; }
  grpc::Status GetMetadata(grpc::string_ref service_url, grpc::string_ref method_name,
                           const grpc::AuthContext& channel_auth_context,
                           std::multimap<std::string, std::string>* metadata) override {
    metadata->emplace("authorization", header_);
    return grpc::Status::OK;
  }
  // What gRPC prints of credentials when it traces.
  grpc::string DebugString() override { return "BearerCredentials{}"; }

 private:
  const std::string header_;
};

// gRPC sends call credentials over TLS only; on a plaintext channel of this host the header is set by hand.
class BearerInterceptor final : public grpc::experimental::Interceptor {
 public:
  explicit BearerInterceptor(std::string header) : header_(std::move(header)) {}
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    using Point = grpc::experimental::InterceptionHookPoints;
    if (methods->QueryInterceptionHookPoint(Point::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->emplace("authorization", header_);
    }
    methods->Proceed();
  }

 private:
  const std::string header_;
};

class BearerInterceptorFactory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit BearerInterceptorFactory(const std::string& token) : header_(absl::StrCat("Bearer ", token)) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(grpc::experimental::ClientRpcInfo* info) override {
    return new BearerInterceptor(header_);
  }

 private:
  const std::string header_;
};

bool IsLoopback(absl::string_view address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:") || absl::StartsWith(address, "unix:");
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(const ChannelOptions& options) {
  if (options.address.empty())
    return absl::InvalidArgumentError("the address to connect to is empty: expected HOST:PORT");
  if (options.tls.insecure && !options.bearer_token.empty() && !IsLoopback(options.address)) {
    return absl::InvalidArgumentError(absl::StrCat("refusing to send a token in plaintext to ", options.address,
                                                   ": use TLS, or an address of this host"));
  }
  auto credentials = MakeChannelCredentials(options.tls);
  if (!credentials.ok()) return Annotate(credentials.status(), absl::StrCat("channel to ", options.address));

  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(options.max_message_bytes);
  arguments.SetMaxSendMessageSize(options.max_message_bytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kPingMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingTimeoutMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kFirstReconnectMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kLastReconnectMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kLastReconnectMs);
  // Two channels to one address are two connections: their limits and failures are their own.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // Roles talk to each other directly; a proxy from the environment is for the outside world.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetServiceConfigJSON(ServiceConfig());
  if (!options.server_name.empty() && !options.tls.insecure) arguments.SetSslTargetNameOverride(options.server_name);

  if (options.bearer_token.empty()) return grpc::CreateCustomChannel(options.address, *credentials, arguments);
  if (!options.tls.insecure) {
    auto with_token = grpc::CompositeChannelCredentials(
        *credentials, grpc::MetadataCredentialsFromPlugin(std::make_unique<BearerCredentials>(options.bearer_token)));
    return grpc::CreateCustomChannel(options.address, with_token, arguments);
  }
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<BearerInterceptorFactory>(options.bearer_token));
  return grpc::experimental::CreateCustomChannelWithInterceptors(options.address, *credentials, arguments,
                                                                 std::move(interceptors));
}

std::unique_ptr<grpc::ClientContext> MakeContext(absl::Duration timeout) {
  auto context = std::make_unique<grpc::ClientContext>();
  if (timeout != absl::InfiniteDuration()) context->set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  return context;
}

}  // namespace rlhf::client
