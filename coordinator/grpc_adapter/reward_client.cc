#include "coordinator/grpc_adapter/reward_client.h"

#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "client/cpp/channel.h"
#include "common/call_deadline.h"
#include "common/fleet_names.h"
#include "common/status_util.h"
#include "rlhf/v1/reward_service.grpc.pb.h"

namespace rlhf::coordinator {
namespace {

// Servers come and go, each with its own address; more than this at once is not expected.
constexpr size_t kMaxChannels = 256;

class GrpcRewardClient final : public RewardClient {
 public:
  explicit GrpcRewardClient(const TlsFiles& tls) : tls_(tls) {}
  ~GrpcRewardClient() override {
    absl::MutexLock lock(&mu_);
    closed_ = true;
    for (grpc::ClientContext* context : in_flight_) context->TryCancel();
    mu_.Await(absl::Condition(this, &GrpcRewardClient::Idle));
  }

  void Score(const std::string& address, v1::ScoreRequest request, absl::Duration timeout,
             absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done) override {
    absl::StatusOr<std::shared_ptr<v1::RewardService::Stub>> stub = StubOf(address);
    if (!stub.ok()) return done(stub.status());
    auto call = std::make_shared<Call>();
    call->stub = *std::move(stub);
    call->request = std::move(request);
    call->done = std::move(done);
    call->context.set_deadline(CallDeadline(timeout));
    {
      absl::MutexLock lock(&mu_);
      in_flight_.insert(&call->context);
    }
    call->stub->async()->Score(&call->context, &call->request, &call->response,
                               [this, call, address](grpc::Status status) {
                                 if (status.ok()) {
                                   call->done(std::move(call->response));
                                 } else {
                                   call->done(Annotate(FromGrpc(status), absl::StrCat("reward server at ", address)));
                                 }
                                 absl::MutexLock lock(&mu_);
                                 in_flight_.erase(&call->context);
                               });
  }

 private:
  struct Call {
    std::shared_ptr<v1::RewardService::Stub> stub;
    grpc::ClientContext context;
    v1::ScoreRequest request;
    v1::ScoreResponse response;
    absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done;
  };

  absl::StatusOr<std::shared_ptr<v1::RewardService::Stub>> StubOf(const std::string& address) {
    absl::MutexLock lock(&mu_);
    if (closed_) return absl::CancelledError("the coordinator is shutting down");
    const auto it = stubs_.find(address);
    if (it != stubs_.end()) return it->second;
    client::ChannelOptions options;
    options.address = address;
    options.tls = tls_;
    options.server_name = FleetServerName("reward_server");
    RLHF_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, client::MakeChannel(options));
    if (stubs_.size() >= kMaxChannels) stubs_.clear();  // calls in flight hold theirs
    std::shared_ptr<v1::RewardService::Stub> stub = v1::RewardService::NewStub(channel);
    stubs_.emplace(address, stub);
    return stub;
  }
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return in_flight_.empty(); }

  const TlsFiles tls_;
  absl::Mutex mu_;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  std::map<std::string, std::shared_ptr<v1::RewardService::Stub>> stubs_ ABSL_GUARDED_BY(mu_);
  std::set<grpc::ClientContext*> in_flight_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

std::unique_ptr<RewardClient> MakeGrpcRewardClient(const TlsFiles& tls) {
  return std::make_unique<GrpcRewardClient>(tls);
}

}  // namespace rlhf::coordinator
