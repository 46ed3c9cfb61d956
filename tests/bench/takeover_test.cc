// Two coordinators on one PostgreSQL database and one data folder, under a fleet without models: the one that stands by
// takes over from a leader that dies or hangs, nothing that was acknowledged is lost, and nothing of the former
// leader's comes late.
#include <signal.h>

#include <cstdlib>
#include <future>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/channel.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "tests/bench/load_fixture.h"
#include "tests/testing/postgres_server.h"

namespace rlhf::bench {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kTakeover = absl::Seconds(10);

class TakeoverTest : public LoadClusterTest {
 protected:
  void SetUp() override {
    if (const std::string why = PostgresServer::Missing(); !why.empty()) GTEST_SKIP() << why;
    server_ = std::make_unique<PostgresServer>();
    LoadOptions options = SmallLoad();
    options.dir = dir_.File("cluster");
    options.store = server_->Uri();
    options.evidence_dir = dir_.File("evidence");
    if (!coordinator_.empty()) options.coordinator = coordinator_;
    Start(options);
  }
  void TearDown() override {
    for (int i = 0; HasFailure() && i < 2; ++i)
      std::fprintf(stderr, "--- coordinator-%d\n%s\n", i,
                   ReadFile(absl::StrCat(dir_.path(), "/cluster/coordinator-", i, ".log")).value_or("").c_str());
    cluster_.reset();  // before the database's server
  }
  // What was acknowledged to the learner is trained, or, after a return to the checkpoint, about to be.
  void ExpectNothingLost(int64_t acknowledged_steps) {
    const v1::LedgerCounts counts = Ledger(true);
    EXPECT_GE(counts.trained() + counts.assigned(), acknowledged_steps * kSamplesPerStep) << counts.ShortDebugString();
    const CommandResult checked =
        Ctl(absl::StrCat("ledger ", cluster_->job_id(), " --check --evidence ", dir_.File("evidence")));
    EXPECT_EQ(checked.code, 0) << checked.output;
  }
  // Of its plain port: the status and the body.
  std::string Http(int which, const std::string& path) {
    return RunCommand(absl::StrCat("curl -s -w ' %{http_code}' http://", cluster_->address(which, "http"), path))
        .output;
  }
  void ExpectStandsBy(int which) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!absl::StrContains(Http(which, "/readyz"), "standing by")) {
      ASSERT_LT(absl::Now(), deadline) << Http(which, "/readyz");
      absl::SleepFor(absl::Milliseconds(50));  // as above
    }
    EXPECT_THAT(Http(which, "/healthz"), HasSubstr(" 200"));
    EXPECT_THAT(Http(which, "/readyz"), HasSubstr(" 503"));
    const absl::Status api = GetJob(Direct(which), cluster_->job_id()).status();
    EXPECT_EQ(api.code(), absl::StatusCode::kUnavailable) << api;
    EXPECT_EQ(ReasonOf(api), v1::NOT_LEADING) << api;
    const auto fleet =
        cluster_->channels().Connect(cluster_->address(which, "fleet"), "rollout_worker", "worker-direct");
    ASSERT_TRUE(fleet.ok()) << fleet.status();
    v1::RegisterResponse response;
    const auto context = client::MakeContext(absl::Seconds(20));
    const absl::Status refused = FromGrpc(v1::FleetService::NewStub(*fleet)->Register(context.get(), {}, &response));
    EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable) << refused;
    EXPECT_EQ(ReasonOf(refused), v1::NOT_LEADING) << refused;
  }
  // To one of the two, whoever leads.
  std::shared_ptr<grpc::Channel> Direct(int which) {
    client::ChannelOptions options;
    options.address = cluster_->address(which, "api");
    options.tls = cluster_->channels().api();
    options.bearer_token = cluster_->coordinator(0).token("submitter");
    auto channel = client::MakeChannel(options);
    EXPECT_TRUE(channel.ok()) << channel.status();
    return channel.value_or(nullptr);
  }

  std::unique_ptr<PostgresServer> server_;
  std::string coordinator_;  // its binary, when not the usual one
};

// With the coordinator whose failpoints can be armed.
class TakeoverAtAStageTest : public TakeoverTest {
 protected:
  void SetUp() override {
    const char* bin = std::getenv("RLHF_FAULTS_BIN_DIR");
    coordinator_ = absl::StrCat(bin == nullptr ? "build/release/bin-faults" : bin, "/rlhf-coordinator");
    ASSERT_TRUE(MakeDirs(Failpoint("")).ok());
    ASSERT_EQ(setenv("RLHF_FAILPOINTS_DIR", dir_.File("failpoints").c_str(), 1), 0);
    TakeoverTest::SetUp();
  }
  void TearDown() override {
    TakeoverTest::TearDown();
    unsetenv("RLHF_FAILPOINTS_DIR");
  }
  std::string Failpoint(const std::string& name) { return dir_.File("failpoints/coordinator/") + name; }
};

TEST_F(TakeoverTest, AKilledLeaderIsReplacedAndNothingIsLost) {
  WaitTrained(3 * kSamplesPerStep);
  ExpectStandsBy(1);
  cluster_->coordinator(0).Signal(SIGKILL);
  const absl::Time killed = absl::Now();
  ASSERT_EQ(cluster_->coordinator(0).Wait(), -SIGKILL);
  const int64_t acknowledged = cluster_->learner().committed();
  const absl::Status ready = cluster_->coordinator(1).WaitReady(kTakeover);
  ASSERT_TRUE(ready.ok()) << ready;
  RecordProperty("takeover_ms", static_cast<int>(absl::ToInt64Milliseconds(absl::Now() - killed)));
  EXPECT_THAT(Http(1, "/readyz"), HasSubstr(" 200"));
  ExpectNothingLost(acknowledged);
  WaitTrained((acknowledged + 3) * kSamplesPerStep);

  // And back: the first one, started again, stands by and takes over in its turn.
  ASSERT_TRUE(cluster_->StartAgain(0).ok());
  ExpectStandsBy(0);
  cluster_->coordinator(1).Signal(SIGKILL);
  ASSERT_EQ(cluster_->coordinator(1).Wait(), -SIGKILL);
  const int64_t then = cluster_->learner().committed();
  EXPECT_GE(then, acknowledged);
  const absl::Status again = cluster_->coordinator(0).WaitReady(kTakeover);
  ASSERT_TRUE(again.ok()) << again;
  ExpectNothingLost(then);
  WaitTrained((then + 3) * kSamplesPerStep);

  ASSERT_TRUE(cluster_->StartAgain(1).ok());
  ExpectStandsBy(1);
  cluster_->coordinator(1).Signal(SIGTERM);
  EXPECT_EQ(cluster_->coordinator(1).WaitFor(absl::Seconds(10)).value_or(-1), 0) << "one that stands by ends at once";
}

TEST_F(TakeoverTest, ALeaderThatHangsIsFencedAndEndsWhenItGoesOn) {
  WaitTrained(2 * kSamplesPerStep);
  const auto direct = Direct(0);
  ASSERT_TRUE(GetJob(direct, cluster_->job_id()).ok());
  cluster_->coordinator(0).Signal(SIGSTOP);
  const absl::Time stopped = absl::Now();
  const int64_t acknowledged = cluster_->learner().committed();
  // A write that lies in its socket until it goes on.
  auto late = std::async(std::launch::async, [&] { return CancelJob(direct, cluster_->job_id()); });
  const absl::Status ready = cluster_->coordinator(1).WaitReady(kTakeover);
  RecordProperty("takeover_ms", static_cast<int>(absl::ToInt64Milliseconds(absl::Now() - stopped)));
  EXPECT_TRUE(ready.ok()) << ready;
  cluster_->coordinator(0).Signal(SIGCONT);
  ASSERT_TRUE(ready.ok());
  EXPECT_EQ(cluster_->coordinator(0).WaitFor(absl::Seconds(5)).value_or(-1), 75) << "the former leader lives on";
  const absl::Status cancelled = late.get();
  EXPECT_FALSE(cancelled.ok()) << "a former leader acknowledged a write";
  const std::string log = ReadFile(cluster_->dir() + "/coordinator-0.log").value_or("");
  EXPECT_THAT(log, HasSubstr("does not lead any more"));

  ExpectNothingLost(acknowledged);
  const auto job = GetJob(cluster_->api(), cluster_->job_id());
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->state(), v1::RUNNING) << "the late write came through: " << job->reason();
  WaitTrained((acknowledged + 3) * kSamplesPerStep);
  // The store as the next start reads it, not as the leader remembers it.
  ASSERT_TRUE(cluster_->StartAgain(0).ok());
  ExpectStandsBy(0);
  cluster_->coordinator(1).Signal(SIGTERM);
  EXPECT_EQ(cluster_->coordinator(1).WaitFor(absl::Seconds(20)).value_or(-1), 0);
  ASSERT_TRUE(cluster_->coordinator(0).WaitReady(kTakeover).ok());
  ExpectNothingLost(cluster_->learner().committed());
  EXPECT_EQ(GetJob(cluster_->api(), cluster_->job_id()).value_or(v1::Job()).state(), v1::RUNNING);
}

// Rows that are not there yet, or are there and nobody was told.
TEST_F(TakeoverAtAStageTest, ALeaderThatDiesAroundACommitLosesNothing) {
  int leader = 0;
  for (const std::string stage : {"store.before_commit", "store.after_commit"}) {
    ExpectStandsBy(1 - leader);
    WaitTrained((cluster_->learner().committed() + 2) * kSamplesPerStep);
    ASSERT_TRUE(WriteFileDurably(Failpoint(stage), "kill@3").ok());
    ASSERT_EQ(cluster_->coordinator(leader).WaitFor(absl::Seconds(20)).value_or(0), -SIGKILL) << stage;
    const int64_t acknowledged = cluster_->learner().committed();
    const absl::Status ready = cluster_->coordinator(1 - leader).WaitReady(kTakeover);
    ASSERT_TRUE(ready.ok()) << stage << ": " << ready;
    ExpectNothingLost(acknowledged);
    WaitTrained((acknowledged + 3) * kSamplesPerStep);
    ASSERT_TRUE(cluster_->StartAgain(leader).ok());
    leader = 1 - leader;
    ASSERT_FALSE(HasFatalFailure());
  }
}

}  // namespace
}  // namespace rlhf::bench
