// The gRPC edge of the reward server: checks a request's shape, queues it, answers when its batch is done.
#pragma once

#include "reward_server/batcher.h"
#include "rlhf/v1/reward_service.grpc.pb.h"

namespace rlhf::reward {

class RewardServiceAdapter : public v1::RewardService::CallbackService {
 public:
  explicit RewardServiceAdapter(Batcher* batcher) : batcher_(batcher) {}
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override;

 private:
  Batcher* batcher_;
};

}  // namespace rlhf::reward
