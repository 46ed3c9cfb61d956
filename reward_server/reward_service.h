// The gRPC edge of the reward server: checks a request's shape, queues it, answers when its batch is done.
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "common/rpc_server.h"
#include "reward_server/batcher.h"
#include "rlhf/v1/reward_service.grpc.pb.h"

namespace rlhf::reward {

class RewardServiceAdapter : public v1::RewardService::CallbackService {
 public:
  // What this server cannot serve at all is refused before it is queued; any thread.
  using Check = std::function<absl::Status(const v1::ScoreRequest&)>;
  explicit RewardServiceAdapter(Batcher* batcher, Check suits = nullptr)
      : batcher_(batcher), suits_(std::move(suits)) {}
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override;

 private:
  Batcher* batcher_;
  const Check suits_;
};

// For the listener: only the coordinator asks for scores.
Authorizer AuthorizeScoring(const std::string& trust_domain);

}  // namespace rlhf::reward
