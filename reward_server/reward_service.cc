#include "reward_server/reward_service.h"

#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/failpoint.h"
#include "common/status_util.h"
#include "common/tls.h"

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

absl::StatusOr<Caller> AuthorizeScoring(const std::string& method, const std::string& /*bearer_token*/,
                                        const std::string& spiffe_id) {
  const auto identity = ParseSpiffeId(spiffe_id);
  if (!identity.ok()) return absl::UnauthenticatedError("expected a client certificate with a SPIFFE id");
  const bool health = absl::StartsWith(method, "/grpc.health.v1.Health/");
  if (!health && identity->role != "coordinator") {
    return absl::PermissionDeniedError(
        absl::StrCat(method, " is for the coordinator; the certificate's role is ", identity->role));
  }
  Caller caller;
  caller.subject = identity->instance;
  caller.role = identity->role;
  return caller;
}

}  // namespace rlhf::reward
