// What each role may call, in full; and that a flood of refused calls fills no audit log.
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/counter.h>

#include "absl/strings/str_cat.h"
#include "coordinator/auth/denials.h"
#include "coordinator/auth/method_table.h"
#include "coordinator/oversight.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/fake_clock.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;

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

TEST(DeniedCallsTest, AreRecordedAtABoundedRateAndAllAreCounted) {
  FakeClock clock;
  ManualLoop loop(&clock);
  EdgeMemoryStore store;
  MetricsRegistry metrics("coordinator");
  const std::unique_ptr<Oversight> oversight = MakeOversight(&loop, &store);
  ASSERT_TRUE(oversight->Recover().ok());
  Denials denials(&loop, oversight.get(), &store, &metrics, /*burst=*/3);
  // "SUBJECT OBJECT LEFT_OUT" of each record, in order.
  const auto records = [&] {
    loop.Run();
    std::vector<std::string> seen;
    const auto all = oversight->audit().All();
    EXPECT_TRUE(all.ok()) << all.status();
    for (const v1::AuditRecord& record : *all) {
      EXPECT_EQ(record.action(), "call.denied");
      EXPECT_EQ(record.decision(), "denied");
      EXPECT_EQ(record.details().at("reason"), "role");
      const auto left_out = record.details().find("left_out_before");
      seen.push_back(absl::StrCat(record.subject(), " ", record.object().size(), " ",
                                  left_out == record.details().end() ? "0" : left_out->second));
    }
    return seen;
  };
  for (int i = 0; i < 10; ++i) denials.Note("", std::string(1000, 'm'), "role");
  EXPECT_THAT(records(), ElementsAre("unknown 200 0", "unknown 200 0", "unknown 200 0"));
  for (int i = 0; i < 10; ++i) denials.Note("eve", "/m", "role");
  EXPECT_EQ(records().size(), 6u) << "strangers hide nobody who has a name";
  EXPECT_EQ(records().back(), "eve 2 0");
  clock.Advance(absl::Seconds(1));
  denials.Note("eve", "/m", "role");
  denials.Note("eve", "/m", "role");
  EXPECT_EQ(records().size(), 7u) << "one a second";
  EXPECT_EQ(records().back(), "eve 2 7");
  clock.Advance(absl::Hours(1));
  for (int i = 0; i < 10; ++i) denials.Note("eve", "/m", "role");
  EXPECT_EQ(records().size(), 10u) << "an hour's silence saves no more than the burst";
  EXPECT_EQ(records()[7], "eve 2 1");
  EXPECT_EQ(metrics.Counter("rlhf_auth_failures_total", "", {{"reason", "role"}}).Value(), 32);
}

}  // namespace
}  // namespace rlhf::coordinator
