#include "reward_server/reward_service.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/failpoint.h"
#include "common/fleet_authorizer.h"
#include "common/status_util.h"

namespace rlhf::reward {

grpc::ServerUnaryReactor* RewardServiceAdapter::Score(grpc::CallbackServerContext* context,
                                                      const v1::ScoreRequest* request, v1::ScoreResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (request->samples().empty()) {
    reactor->Finish(
        ToGrpc(absl::InvalidArgumentError("ScoreRequest.samples: expected at least one sample, found none")));
    return reactor;
  }
  for (const auto& sample : request->samples()) {
    if (sample.prompt_tokens().empty() && sample.response_text().empty() && sample.response_tokens().empty()) {
      reactor->Finish(ToGrpc(absl::InvalidArgumentError(
          absl::StrCat("ScoreRequest.samples: sample ", sample.id().step(), "/", sample.id().ordinal(), "/",
                       sample.id().index(), " has neither tokens nor text"))));
      return reactor;
    }
  }
  if (const absl::Status suited = suits_ ? suits_(*request) : absl::OkStatus(); !suited.ok()) {
    reactor->Finish(ToGrpc(suited));
    return reactor;
  }
  if (!RLHF_FAILPOINT_OK("reward/before_score")) {
    reactor->Finish(ToGrpc(absl::UnavailableError("failpoint reward/before_score")));
    return reactor;
  }
  // The context lives until the reactor has finished, which only the reply does.
  batcher_->Submit(
      *request,
      [reactor, response](absl::StatusOr<v1::ScoreResponse> scored) {
        RLHF_FAILPOINT("reward/after_score");
        if (scored.ok()) *response = *std::move(scored);
        if (!RLHF_FAILPOINT_OK("reward/nan_score") && response->scores_size() > 0)
          response->mutable_scores(0)->mutable_score()->set_total(std::numeric_limits<double>::quiet_NaN());
        reactor->Finish(ToGrpc(scored.status()));
      },
      [context] { return context->IsCancelled(); });
  return reactor;
}

Authorizer AuthorizeScoring(const std::string& trust_domain) {
  return AuthorizeOneRole("coordinator", {"rlhf.v1.RewardService", "grpc.reflection.v1alpha.ServerReflection"},
                          trust_domain);
}

}  // namespace rlhf::reward
