#include "common/rpc_interceptor.h"

#include <grpc/grpc_security_constants.h>

#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include <google/protobuf/descriptor.h>
#include <prometheus/counter.h>
#include <prometheus/histogram.h>

#include "absl/hash/hash.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "common/status_util.h"
#include "common/tracing.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf {
namespace {

// gRPC has no place in a ServerContext for values of ours (the AuthContext is shared by all calls of a connection), so
// they are kept beside it, by address, from the call's beginning until its context is destroyed.
class CallerTable {
 public:
  void Put(const grpc::ServerContextBase* context, Caller caller) {
    Shard& shard = ShardOf(context);
    absl::MutexLock lock(&shard.mu);
    shard.callers[context] = std::move(caller);
  }
  void Erase(const grpc::ServerContextBase* context) {
    Shard& shard = ShardOf(context);
    absl::MutexLock lock(&shard.mu);
    shard.callers.erase(context);
  }
  Caller Get(const grpc::ServerContextBase* context) {
    Shard& shard = ShardOf(context);
    absl::MutexLock lock(&shard.mu);
    const auto it = shard.callers.find(context);
    return it == shard.callers.end() ? Caller{} : it->second;
  }

 private:
  struct Shard {
    absl::Mutex mu;
    absl::flat_hash_map<const grpc::ServerContextBase*, Caller> callers ABSL_GUARDED_BY(mu);
  };
  static constexpr size_t kShards = 16;
  Shard& ShardOf(const grpc::ServerContextBase* context) {
    return shards_[absl::Hash<const void*>{}(context) % kShards];
  }
  Shard shards_[kShards];
};

CallerTable& Callers() {
  static CallerTable* const table = new CallerTable;
  return *table;
}

Caller InsecureCaller() {
  Caller caller;
  caller.subject = "insecure";
  caller.project = "*";
  for (int i = v1::TokenRole_MIN + 1; i <= v1::TokenRole_MAX; ++i) {
    caller.roles.push_back(absl::AsciiStrToLower(v1::TokenRole_Name(static_cast<v1::TokenRole>(i))));
  }
  return caller;
}

class CallInterceptor final : public grpc::experimental::Interceptor {
 public:
  CallInterceptor(grpc::experimental::ServerRpcInfo* info, std::shared_ptr<const Authorizer> authorizer,
                  std::shared_ptr<RpcMetrics> metrics)
      : context_(info->server_context()),
        method_(info->method()),
        authorizer_(std::move(authorizer)),
        metrics_(std::move(metrics)),
        started_(absl::Now()) {}

  ~CallInterceptor() override {
    if (began_) {
      Callers().Erase(context_);
      if (trace_.valid()) ExportServed();
      if (!halted_) metrics_->Count(method_, code_, absl::Now() - started_);
      metrics_->Closed();
    }
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    using Point = grpc::experimental::InterceptionHookPoints;
    if (methods->QueryInterceptionHookPoint(Point::POST_RECV_INITIAL_METADATA)) Begin();
    if (methods->QueryInterceptionHookPoint(Point::PRE_SEND_STATUS)) {
      const grpc::Status status = methods->GetSendStatus();
      code_ = status.error_code();
      halted_ = code_ == grpc::StatusCode::UNAVAILABLE && ReasonOf(FromGrpc(status)) == v1::SERVICE_HALTED;
    }
    methods->Proceed();
  }

 private:
  void Begin() {
    began_ = true;
    metrics_->Opened();
    if (TracingOn()) ContinueTrace();
    absl::StatusOr<Caller> caller = authorizer_ == nullptr
                                        ? InsecureCaller()
                                        : (*authorizer_)(method_, BearerTokenOf(context_->client_metadata()),
                                                         SpiffeIdOf(*context_->auth_context()));
    // The metadata processor has let this call in just now: a refusal here means that the permission ended meanwhile.
    // The handler then sees a caller without name or roles, and the call is cancelled under it.
    if (!caller.ok()) {
      context_->TryCancel();
      caller = Caller{};
    }
    caller->method = method_;
    Callers().Put(context_, *std::move(caller));
  }

  // A call without a context, or with one that is not well formed, is in no trace.
  void ContinueTrace() {
    const auto& metadata = context_->client_metadata();
    const auto header = metadata.find(kTraceparent);
    if (header == metadata.end()) return;
    absl::StatusOr<TraceContext> caller =
        ParseTraceparent(absl::string_view(header->second.data(), header->second.size()));
    if (caller.ok()) trace_ = *std::move(caller);
  }
  void ExportServed() {
    SpanRecord span;
    span.context.trace_id = trace_.trace_id;
    span.parent_span_id = trace_.span_id;
    span.name = method_.substr(0, 1) == "/" ? method_.substr(1) : method_;
    span.kind = SpanKind::kServer;
    span.begin = started_;
    span.end = absl::Now();
    span.attributes = {{"rpc.system", "grpc"}, {"rpc.grpc.status_code", absl::StrCat(static_cast<int>(code_))}};
    if (code_ != grpc::StatusCode::OK) span.error = absl::StrCat("code ", static_cast<int>(code_));
    ExportSpan(std::move(span));
  }

  grpc::ServerContextBase* const context_;
  const std::string method_;
  const std::shared_ptr<const Authorizer> authorizer_;
  const std::shared_ptr<RpcMetrics> metrics_;
  TraceContext trace_;  // the caller's
  const absl::Time started_;
  bool began_ = false;
  // A call whose peer went away ends without a status being sent.
  grpc::StatusCode code_ = grpc::StatusCode::CANCELLED;
  // An overseer wants it refused, for as long as it takes: that is no failing service.
  bool halted_ = false;
};

class CallInterceptorFactory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  CallInterceptorFactory(std::shared_ptr<const Authorizer> authorizer, std::shared_ptr<RpcMetrics> metrics)
      : authorizer_(std::move(authorizer)), metrics_(std::move(metrics)) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(grpc::experimental::ServerRpcInfo* info) override {
    return new CallInterceptor(info, authorizer_, metrics_);
  }

 private:
  const std::shared_ptr<const Authorizer> authorizer_;
  const std::shared_ptr<RpcMetrics> metrics_;
};

const char* CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {
      "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
      "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
      "DATA_LOSS", "UNAUTHENTICATED"};
  return code >= 0 && code < static_cast<int>(std::size(kNames)) ? kNames[code] : "UNKNOWN";
}

}  // namespace

const RpcMetrics::Labels& RpcMetrics::LabelsOf(const std::string& method) {
  const auto it = labels_.find(method);
  if (it != labels_.end()) return it->second;
  static const Labels* const unknown = new Labels{"unknown", "unknown"};
  const size_t slash = method.rfind('/');
  if (slash == std::string::npos || slash == 0) return *unknown;
  Labels labels{method.substr(1, slash - 1), method.substr(slash + 1)};
  const bool known = absl::StartsWith(labels.service, "grpc.health.v1.") ||
                     google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(
                         absl::StrCat(labels.service, ".", labels.method)) != nullptr;
  if (!known) return *unknown;
  return labels_.emplace(method, std::move(labels)).first->second;
}

void RpcMetrics::Count(const std::string& method, grpc::StatusCode code, absl::Duration took) {
  if (registry_ == nullptr) return;
  Labels labels;
  {
    absl::MutexLock lock(&mu_);
    labels = LabelsOf(method);
  }
  static const std::vector<double>* const buckets =
      new std::vector<double>{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};
  registry_
      ->Counter("grpc_server_handled_total", "Calls finished, by code.",
                {{"grpc_service", labels.service}, {"grpc_method", labels.method}, {"grpc_code", CodeName(code)}})
      .Increment();
  registry_
      ->Histogram("grpc_server_handling_seconds", "Time from a call's arrival to its end.", *buckets,
                  {{"grpc_service", labels.service}, {"grpc_method", labels.method}})
      .Observe(absl::ToDoubleSeconds(took));
}

std::string BearerTokenOf(const std::multimap<grpc::string_ref, grpc::string_ref>& metadata) {
  const auto it = metadata.find("authorization");
  if (it == metadata.end()) return "";
  absl::string_view value(it->second.data(), it->second.size());
  constexpr absl::string_view kScheme = "Bearer ";
  if (!absl::StartsWithIgnoreCase(value, kScheme)) return "";
  value.remove_prefix(kScheme.size());
  return std::string(absl::StripAsciiWhitespace(value));
}

std::string SpiffeIdOf(const grpc::AuthContext& context) {
  const auto ids = context.FindPropertyValues(GRPC_PEER_SPIFFE_ID_PROPERTY_NAME);
  return ids.size() == 1 ? std::string(ids[0].data(), ids[0].size()) : "";
}

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeCallInterceptorFactory(
    std::shared_ptr<const Authorizer> authorizer, std::shared_ptr<RpcMetrics> metrics) {
  return std::make_unique<CallInterceptorFactory>(std::move(authorizer), std::move(metrics));
}

Caller CallerOf(const grpc::ServerContextBase& context) {
  return Callers().Get(&context);
}

}  // namespace rlhf
