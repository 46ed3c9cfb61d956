#include "coordinator/auth/method_table.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

using Roles = std::vector<std::string>;

std::vector<MethodRule> ApiRules() {
  const Roles nobody;
  const Roles everyone = {"viewer", "submitter", "rater", "overseer", "admin"};
  const Roles readers = {"viewer", "submitter", "overseer", "admin"};
  const Roles writers = {"submitter", "admin"};
  const Roles raters = {"rater", "admin"};
  const Roles overseers = {"overseer"};
  const Roles auditors = {"overseer", "admin"};
  const Roles admins = {"admin"};
  const std::string job = "/rlhf.v1.JobService/", artifact = "/rlhf.v1.ArtifactService/",
                    feedback = "/rlhf.v1.FeedbackService/", oversight = "/rlhf.v1.OversightService/",
                    log = "/rlhf.v1.LogService/", admin = "/rlhf.v1.AdminService/";
  return {
      {job + "SubmitJob", writers},
      {job + "ValidateJob", readers},
      {job + "GetJob", readers},
      {job + "ListJobs", readers},
      {job + "WatchJob", readers},
      {job + "CancelJob", writers},
      {job + "PauseJob", writers},
      {job + "ResumeJob", writers},
      {job + "DeleteJob", writers},
      {job + "GetLedger", readers},
      {job + "ListSamples", readers},
      {job + "ListMetrics", readers},
      {job + "ExplainJob", readers},
      {artifact + "StartUpload", writers},
      {artifact + "UploadChunks", writers},
      {artifact + "FinishUpload", writers},
      // Only a role of the fleet shares the artifact root.
      {artifact + "RegisterArtifact", nobody},
      {artifact + "GetArtifact", readers},
      {artifact + "ListArtifacts", readers},
      {artifact + "Download", readers},
      {artifact + "SetAlias", writers},
      {artifact + "PinArtifact", writers},
      {artifact + "DeleteArtifact", writers},
      {feedback + "NextTasks", raters},
      {feedback + "SubmitFeedback", raters},
      {feedback + "SkipTask", raters},
      {feedback + "ImportComparisons", writers},
      {feedback + "ExportComparisons", readers},
      {feedback + "GetFeedbackStats", everyone},
      {feedback + "GetAgreement", readers},
      {feedback + "FreezeSet", writers},
      {feedback + "ListSets", readers},
      {feedback + "ForgetRater", admins},
      {oversight + "ListGates", readers},
      {oversight + "DecideGate", overseers},
      {oversight + "HaltService", overseers},
      {oversight + "ResumeService", overseers},
      {oversight + "GetServiceState", everyone},
      {oversight + "ListAudit", auditors},
      {oversight + "VerifyAudit", auditors},
      {oversight + "ListAuditHeads", auditors},
      {oversight + "GetLineage", readers},
      {log + "AppendLogs", nobody},
      {log + "FollowLogs", readers},
      {admin + "ListWorkers", readers},
      {admin + "DrainWorker", admins},
      {admin + "CordonWorker", admins},
      {admin + "CreateToken", admins},
      {admin + "ListTokens", admins},
      {admin + "RevokeToken", admins},
      {admin + "GetQuota", readers},
      {admin + "SetQuota", admins},
      {admin + "ListQuotas", readers},
      {admin + "Backup", admins},
      {"/grpc.health.v1.Health/Check", nobody, true},
      {"/grpc.health.v1.Health/Watch", nobody, true},
      {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", everyone},
  };
}

std::vector<MethodRule> FleetRules() {
  const Roles nobody;
  const Roles workers = {"rollout_worker", "learner", "reward_server"};
  const Roles rollout = {"rollout_worker"};
  const Roles learner = {"learner"};
  const Roles any = {"rollout_worker", "learner", "reward_server", "coordinator"};
  const std::string fleet = "/rlhf.v1.FleetService/", learning = "/rlhf.v1.LearnerService/",
                    artifact = "/rlhf.v1.ArtifactService/", log = "/rlhf.v1.LogService/";
  return {
      {fleet + "Register", workers},
      {fleet + "Heartbeat", workers},
      {fleet + "LeasePrompts", rollout},
      {fleet + "SubmitSamples", rollout},
      {fleet + "ReturnLeases", rollout},
      {learning + "JoinGroup", learner},
      {learning + "PublishRendezvous", learner},
      {learning + "NextBatch", learner},
      {learning + "CommitStep", learner},
      {learning + "RefuseStep", learner},
      {learning + "GetCommitted", learner},
      {learning + "ReportProgress", learner},
      {learning + "ReportCheckpoint", learner},
      {learning + "FinishTraining", learner},
      {learning + "FailTraining", learner},
      {artifact + "StartUpload", learner},
      {artifact + "UploadChunks", learner},
      {artifact + "FinishUpload", learner},
      {artifact + "RegisterArtifact", learner},
      {artifact + "GetArtifact", workers},
      {artifact + "ListArtifacts", workers},
      {artifact + "Download", workers},
      {artifact + "SetAlias", nobody},
      {artifact + "PinArtifact", nobody},
      {artifact + "DeleteArtifact", nobody},
      {log + "AppendLogs", workers},
      {log + "FollowLogs", nobody},
      {"/grpc.health.v1.Health/Check", any},
      {"/grpc.health.v1.Health/Watch", any},
      {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", any},
  };
}

struct MethodRules {
  explicit MethodRules(std::vector<MethodRule> r) : rules(std::move(r)) {
    for (const MethodRule& rule : rules) by_method.emplace(rule.method, &rule);
  }
  const std::vector<MethodRule> rules;
  std::map<std::string, const MethodRule*> by_method;
};

const MethodRules& TableOf(Listener listener) {
  static const MethodRules* const fleet = new MethodRules(FleetRules());
  static const MethodRules* const api = new MethodRules(ApiRules());
  return listener == Listener::kFleet ? *fleet : *api;
}

}  // namespace

const std::vector<MethodRule>& Rules(Listener listener) {
  return TableOf(listener).rules;
}

const MethodRule* FindRule(Listener listener, const std::string& method) {
  const MethodRules& table = TableOf(listener);
  const auto it = table.by_method.find(method);
  return it == table.by_method.end() ? nullptr : it->second;
}

absl::Status CheckRole(Listener listener, const std::string& method, const std::vector<std::string>& roles) {
  const MethodRule* rule = FindRule(listener, method);
  if (rule == nullptr) {
    return WithReason(absl::PermissionDeniedError(absl::StrCat(method, " is not served on this listener")),
                      v1::ROLE_NOT_ALLOWED);
  }
  if (rule->open) return absl::OkStatus();
  for (const std::string& role : roles) {
    if (std::find(rule->roles.begin(), rule->roles.end(), role) != rule->roles.end()) return absl::OkStatus();
  }
  return WithReason(
      absl::PermissionDeniedError(
          absl::StrCat(method,
                       rule->roles.empty() ? " is open to nobody on this listener"
                                           : absl::StrCat(" needs one of the roles ", absl::StrJoin(rule->roles, ", ")),
                       "; the caller has ", roles.empty() ? "none" : absl::StrJoin(roles, ", "))),
      v1::ROLE_NOT_ALLOWED);
}

}  // namespace rlhf::coordinator
