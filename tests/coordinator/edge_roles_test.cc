// What each role may call, in full.
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/auth/method_table.h"

namespace rlhf::coordinator {
namespace {

using Methods = std::set<std::string>;

Methods Union(const std::vector<Methods>& parts) {
  Methods all;
  for (const Methods& part : parts) all.insert(part.begin(), part.end());
  return all;
}

// Of the listener's methods, without their services' names: those of each role.
std::map<std::string, Methods> ByRole(Listener listener) {
  std::map<std::string, Methods> out;
  for (const MethodRule& rule : Rules(listener)) {
    for (const std::string& role : rule.roles) out[role].insert(rule.method.substr(rule.method.rfind('/') + 1));
  }
  return out;
}

// The table says who may call a method; this says what somebody may. A method that is given to one more role, or taken
// from one, is a change of both.
TEST(RolesTest, PeopleMayCallTheseAndNoOthers) {
  const Methods of_all = {"GetFeedbackStats", "GetServiceState", "ServerReflectionInfo"};
  const Methods reads = {"ValidateJob", "GetJob",      "ListJobs",     "WatchJob",          "GetLedger",
                         "ListSamples", "ListMetrics", "ExplainJob",   "GetArtifact",       "ListArtifacts",
                         "Download",    "ListSets",    "GetAgreement", "ExportComparisons", "ListGates",
                         "GetLineage",  "FollowLogs",  "ListWorkers",  "GetQuota",          "ListQuotas"};
  const Methods audits = {"ListAudit", "VerifyAudit", "ListAuditHeads"};
  const Methods works = {"SubmitJob",      "CancelJob",         "PauseJob",     "ResumeJob", "DeleteJob",
                         "StartUpload",    "UploadChunks",      "FinishUpload", "SetAlias",  "PinArtifact",
                         "DeleteArtifact", "ImportComparisons", "FreezeSet"};
  const Methods rates = {"NextTasks", "SubmitFeedback", "SkipTask"};
  const Methods oversees = {"DecideGate", "HaltService", "ResumeService"};
  const Methods administers = {"ForgetRater", "DrainWorker", "CordonWorker", "CreateToken",
                               "ListTokens",  "RevokeToken", "SetQuota",     "Backup"};
  const std::map<std::string, Methods> expected = {
      {"viewer", Union({of_all, reads})},
      {"submitter", Union({of_all, reads, works})},
      {"rater", Union({of_all, rates})},
      {"overseer", Union({of_all, reads, audits, oversees})},
      {"admin", Union({of_all, reads, audits, works, rates, administers})}};
  EXPECT_EQ(ByRole(Listener::kApi), expected);
}

TEST(RolesTest, ProcessesMayCallTheseAndNoOthers) {
  const Methods of_all = {"Check", "Watch", "ServerReflectionInfo"};
  const Methods member = {"Register", "Heartbeat", "GetArtifact", "ListArtifacts", "Download", "AppendLogs"};
  const Methods generates = {"LeasePrompts", "SubmitSamples", "ReturnLeases"};
  const Methods trains = {"JoinGroup",    "PublishRendezvous", "NextBatch",        "CommitStep",      "RefuseStep",
                          "GetCommitted", "ReportProgress",    "ReportCheckpoint", "FinishTraining",  "FailTraining",
                          "StartUpload",  "UploadChunks",      "FinishUpload",     "RegisterArtifact"};
  const std::map<std::string, Methods> expected = {{"coordinator", of_all},
                                                   {"reward_server", Union({of_all, member})},
                                                   {"rollout_worker", Union({of_all, member, generates})},
                                                   {"learner", Union({of_all, member, trains})}};
  EXPECT_EQ(ByRole(Listener::kFleet), expected);
}

}  // namespace
}  // namespace rlhf::coordinator
