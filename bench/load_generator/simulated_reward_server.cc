#include "bench/load_generator/simulated_reward_server.h"

#include "absl/strings/str_cat.h"
#include "client/cpp/fleet_session.h"
#include "common/process.h"
#include "common/status_util.h"
#include "rlhf/v1/reward_service.grpc.pb.h"

namespace rlhf::bench {
namespace {

class Scores final : public v1::RewardService::CallbackService {
 public:
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override {
    for (const v1::Sample& sample : request->samples()) {
      v1::SampleScore& score = *response->add_scores();
      *score.mutable_id() = sample.id();
      score.set_attempt(sample.attempt());
      score.mutable_score()->set_total(sample.response_tokens_size());
      score.mutable_score()->mutable_reference_log_probs()->Resize(sample.response_tokens_size(), -1.0f);
    }
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

class Server final : public SimulatedRewardServer {
 public:
  ~Server() override {
    if (session_ != nullptr) session_->Stop();
    if (server_ != nullptr) server_->Shutdown();
  }
  absl::Status Open(const LoadOptions& options, const std::string& instance, const std::string& coordinator,
                    const FleetChannels& channels) {
    RLHF_ASSIGN_OR_RETURN(const TlsFiles tls, channels.Issue("reward_server", instance));
    RLHF_ASSIGN_OR_RETURN(const auto credentials, MakeServerCredentials(tls, /*require_client_certificate=*/true));
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", credentials, &port);
    builder.SetMaxReceiveMessageSize(64 << 20);
    builder.RegisterService(&scores_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::UnavailableError("a simulated reward server cannot listen");
    RLHF_ASSIGN_OR_RETURN(const auto channel, channels.Connect(coordinator, "reward_server", instance));
    v1::RegisterRequest identity;
    identity.set_role(v1::ROLE_REWARD_SERVER);
    identity.set_instance_id(instance);
    identity.set_address(absl::StrCat("127.0.0.1:", port));
    identity.set_protocol_version(options.protocol_version == 0 ? kProtocolVersion : options.protocol_version);
    identity.set_build_version(kBuildVersion);
    client::FleetSession::Callbacks callbacks;
    callbacks.fill_heartbeat = [](v1::HeartbeatRequest*) {};
    callbacks.on_heartbeat = [](const v1::HeartbeatResponse&) {};
    callbacks.on_session = [](const std::string&) {};
    session_ = client::FleetSession::Start(channel, identity, callbacks);
    return absl::OkStatus();
  }

 private:
  Scores scores_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<client::FleetSession> session_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SimulatedRewardServer>> SimulatedRewardServer::Start(const LoadOptions& options,
                                                                                    const std::string& instance,
                                                                                    const std::string& coordinator,
                                                                                    const FleetChannels& channels) {
  auto server = std::make_unique<Server>();
  RLHF_RETURN_IF_ERROR(server->Open(options, instance, coordinator, channels));
  return server;
}

}  // namespace rlhf::bench
