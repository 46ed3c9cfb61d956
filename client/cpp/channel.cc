#include "client/cpp/channel.h"

#include <arpa/inet.h>

#include <chrono>
#include <map>
#include <utility>
#include <vector>

#include <grpcpp/support/client_interceptor.h>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/call_deadline.h"
#include "common/fleet_names.h"
#include "common/host_port.h"
#include "common/status_util.h"
#include "common/tracing.h"

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

// One connection to each address; calls go to those that say SERVING.
std::string ServiceConfig(bool several) {
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
  nlohmann::json config = {
      {"methodConfig", nlohmann::json::array({{{"name", std::move(names)}, {"retryPolicy", retry}}})}};
  if (several) {
    config["loadBalancingConfig"] = nlohmann::json::array({{{"round_robin", nlohmann::json::object()}}});
    config["healthCheckConfig"] = {{"serviceName", ""}};
  }
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

// Calls are part of the span of the thread that makes them.
class TraceInterceptor final : public grpc::experimental::Interceptor {
 public:
  explicit TraceInterceptor(TraceContext context) : context_(std::move(context)) {}
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    using Point = grpc::experimental::InterceptionHookPoints;
    if (context_.valid() && methods->QueryInterceptionHookPoint(Point::PRE_SEND_INITIAL_METADATA))
      methods->GetSendInitialMetadata()->emplace(kTraceparent, ToTraceparent(context_));
    methods->Proceed();
  }

 private:
  const TraceContext context_;
};

class TraceInterceptorFactory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  // On the thread that makes the call.
  grpc::experimental::Interceptor* CreateClientInterceptor(grpc::experimental::ClientRpcInfo* /*info*/) override {
    return new TraceInterceptor(CurrentTrace());
  }
};

bool IsLoopback(absl::string_view addresses) {
  for (const absl::string_view address : absl::StrSplit(addresses, ',')) {
    if (!absl::StartsWith(address, "127.") && !absl::StartsWith(address, "localhost:") &&
        !absl::StartsWith(address, "[::1]:") && !absl::StartsWith(address, "unix:"))
      return false;
  }
  return true;
}

bool IsList(absl::string_view address) {
  return absl::StrContains(address, ',');
}

// "ipv4", "ipv6", or empty when it is neither.
std::string FamilyOf(const std::string& host) {
  in6_addr bytes;
  if (inet_pton(AF_INET, host.c_str(), &bytes) == 1) return "ipv4";
  return inet_pton(AF_INET6, host.c_str(), &bytes) == 1 ? "ipv6" : "";
}

// Of a list: the host that all addresses have, or empty.
std::string CommonHost(absl::string_view addresses) {
  std::string common;
  for (const absl::string_view address : absl::StrSplit(addresses, ',')) {
    const absl::StatusOr<HostPort> parsed = ParseHostPort(std::string(address), "address");
    if (!parsed.ok() || (!common.empty() && parsed->host != common)) return "";
    common = parsed->host;
  }
  return common;
}

}  // namespace

absl::StatusOr<std::string> TargetOf(const std::string& address, grpc::ChannelArguments* arguments) {
  arguments->SetServiceConfigJSON(ServiceConfig(IsList(address) || absl::StartsWith(address, "dns:")));
  if (!IsList(address)) return address;
  std::string family;
  for (const absl::string_view one : absl::StrSplit(address, ',')) {
    const absl::StatusOr<HostPort> parsed = ParseHostPort(std::string(one), "address");
    const std::string its = parsed.ok() && parsed->port > 0 ? FamilyOf(parsed->host) : "";
    if (its.empty() || (!family.empty() && family != its)) {
      return absl::InvalidArgumentError(
          absl::StrCat("of several addresses, expected each as IP:PORT, all IPv4 or all IPv6, found \"", one,
                       "\" in \"", address, "\"; for names: dns:///NAME:PORT, with a name that has all the addresses"));
    }
    family = its;
  }
  return absl::StrCat(family, ":", address);
}

void RefuseCompression(grpc::ChannelArguments* arguments) {
  arguments->SetInt(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE);
  arguments->SetInt(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
}

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
  RefuseCompression(&arguments);
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
  RLHF_ASSIGN_OR_RETURN(const std::string target, TargetOf(options.address, &arguments));
  std::string server_name = options.server_name;
  if (server_name.empty() && IsList(options.address)) {
    server_name = CommonHost(options.address);
    if (server_name.empty()) server_name = FleetServerName("coordinator");
  }
  if (!server_name.empty() && !options.tls.insecure) arguments.SetSslTargetNameOverride(server_name);

  std::shared_ptr<grpc::ChannelCredentials> with_token = *credentials;
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  if (TracingOn()) interceptors.push_back(std::make_unique<TraceInterceptorFactory>());
  if (!options.bearer_token.empty() && options.tls.insecure) {
    interceptors.push_back(std::make_unique<BearerInterceptorFactory>(options.bearer_token));
  } else if (!options.bearer_token.empty()) {
    with_token = grpc::CompositeChannelCredentials(
        *credentials, grpc::MetadataCredentialsFromPlugin(std::make_unique<BearerCredentials>(options.bearer_token)));
  }
  if (interceptors.empty()) return grpc::CreateCustomChannel(target, with_token, arguments);
  return grpc::experimental::CreateCustomChannelWithInterceptors(target, with_token, arguments,
                                                                 std::move(interceptors));
}

std::unique_ptr<grpc::ClientContext> MakeContext(absl::Duration timeout) {
  auto context = std::make_unique<grpc::ClientContext>();
  if (timeout != absl::InfiniteDuration()) context->set_deadline(CallDeadline(timeout));
  return context;
}

}  // namespace rlhf::client
