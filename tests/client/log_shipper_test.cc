#include "client/cpp/log_shipper.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/cpp/channel.h"
#include "common/log.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "rlhf/v1/log_service.grpc.pb.h"
#include "tests/testing/loopback_server.h"

namespace rlhf::client {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr absl::Duration kShipTimeout = absl::Seconds(20);

class FakeLogs final : public v1::LogService::CallbackService {
 public:
  grpc::ServerUnaryReactor* AppendLogs(grpc::CallbackServerContext* context, const v1::AppendLogsRequest* request,
                                       v1::AppendLogsResponse* response) override {
    auto* reactor = context->DefaultReactor();
    absl::MutexLock lock(&mu_);
    ++calls_;
    if (!refusal_.ok()) {
      reactor->Finish(ToGrpc(refusal_));
      return reactor;
    }
    sessions_.push_back(request->session_id());
    for (const v1::LogLine& line : request->lines()) lines_.push_back(line);
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  void Refuse(absl::Status status) {
    absl::MutexLock lock(&mu_);
    refusal_ = std::move(status);
  }
  bool WaitForLines(size_t n) {
    absl::MutexLock lock(&mu_);
    const auto reached = [this, n]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return lines_.size() >= n; };
    return mu_.AwaitWithTimeout(absl::Condition(&reached), kShipTimeout);
  }
  bool WaitForCalls(int n) {
    absl::MutexLock lock(&mu_);
    const int target = calls_ + n;
    const auto reached = [this, target]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return calls_ >= target; };
    return mu_.AwaitWithTimeout(absl::Condition(&reached), kShipTimeout);
  }
  std::vector<v1::LogLine> lines() {
    absl::MutexLock lock(&mu_);
    return lines_;
  }
  std::vector<std::string> Messages() {
    std::vector<std::string> messages;
    for (const v1::LogLine& line : lines()) messages.push_back(line.message());
    return messages;
  }
  std::vector<std::string> sessions() {
    absl::MutexLock lock(&mu_);
    return sessions_;
  }

 private:
  absl::Mutex mu_;
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);
  int calls_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<v1::LogLine> lines_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> sessions_ ABSL_GUARDED_BY(mu_);
};

class LogShipperTest : public testing::Test {
 protected:
  void SetUp() override { InitLogging("learner", "l0", "info", /*json=*/true); }

  void Serve(int port = 0) {
    server_ = ServeOnLoopback({&logs_}, port);
    ASSERT_NE(server_, nullptr);
    port_ = server_->port();
  }
  std::unique_ptr<LogShipper> Ship(const LogShipperOptions& options, MetricsRegistry* metrics = nullptr) {
    ChannelOptions channel_options;
    channel_options.address = absl::StrCat("127.0.0.1:", port_);
    channel_options.tls.insecure = true;
    auto channel = MakeChannel(channel_options);
    EXPECT_TRUE(channel.ok()) << channel.status();
    return LogShipper::Start(
        *channel, [this] { return Session(); }, metrics, options);
  }
  std::string Session() {
    absl::MutexLock lock(&mu_);
    return session_;
  }
  void SetSession(const std::string& id) {
    absl::MutexLock lock(&mu_);
    session_ = id;
  }

  FakeLogs logs_;
  std::unique_ptr<RpcServer> server_;
  int port_ = 0;
  absl::Mutex mu_;
  std::string session_ ABSL_GUARDED_BY(mu_) = "s1";
};

TEST_F(LogShipperTest, LinesThatAreAboutAJobArriveWithWhatIsKnown) {
  Serve();
  LogShipperOptions options;
  options.every = absl::Milliseconds(10);
  MetricsRegistry metrics("learner");
  const auto shipper = Ship(options, &metrics);
  spdlog::info("of no job");
  {
    const LogScope group({.job_id = "j1", .group_epoch = 4});
    spdlog::debug("below the level");
    const LogScope step({.step = 7, .sample = "7/0/1", .trace_id = "0af7651916cd43dd8448eb211c80319c"});
    spdlog::warn("refused");
    const LogScope other({.job_id = "j2"});
    spdlog::error("of another job");
  }
  spdlog::info("of no job again");
  ASSERT_TRUE(logs_.WaitForLines(2));
  shipper->Stop();
  ASSERT_THAT(logs_.Messages(), ElementsAre("refused", "of another job"));
  const v1::LogLine line = logs_.lines()[0];
  EXPECT_EQ(line.level(), "warn");
  EXPECT_EQ(line.job_id(), "j1");
  EXPECT_LT(std::abs(absl::ToUnixSeconds(absl::Now()) - line.at().seconds()), 60);
  EXPECT_EQ(line.fields().at("step"), "7");
  EXPECT_EQ(line.fields().at("sample"), "7/0/1");
  EXPECT_EQ(line.fields().at("group_epoch"), "4");
  EXPECT_EQ(line.fields().at("trace_id"), "0af7651916cd43dd8448eb211c80319c");
  EXPECT_EQ(logs_.lines()[1].job_id(), "j2");
  EXPECT_TRUE(logs_.lines()[1].fields().empty()) << "the step is of the first job";
  EXPECT_EQ(shipper->shipped(), 2);
  EXPECT_THAT(metrics.Text(), HasSubstr("rlhf_log_lines_total{outcome=\"shipped\""));
}

TEST_F(LogShipperTest, AFullBatchIsSentBeforeItsTime) {
  Serve();
  LogShipperOptions options;
  options.every = absl::Hours(1);
  options.batch_lines = 3;
  const auto shipper = Ship(options);
  const LogScope scope({.job_id = "j1"});
  for (int i = 0; i < 3; ++i) spdlog::info("line {}", i);
  ASSERT_TRUE(logs_.WaitForLines(3));
  // What is not a full batch leaves at the end.
  spdlog::info("last");
  shipper->Stop();
  EXPECT_THAT(logs_.Messages(), ElementsAre("line 0", "line 1", "line 2", "last"));
}

TEST_F(LogShipperTest, AFullQueueDropsTheOldestAndSaysHowMany) {
  Serve();
  SetSession("");  // not registered yet
  LogShipperOptions options;
  options.every = absl::Milliseconds(10);
  options.queued_lines = 3;
  const auto shipper = Ship(options);
  {
    const LogScope scope({.job_id = "j1"});
    for (int i = 0; i < 10; ++i) spdlog::info("line {}", i);
  }
  EXPECT_EQ(shipper->dropped(), 7);
  EXPECT_TRUE(logs_.lines().empty());
  SetSession("s2");
  ASSERT_TRUE(logs_.WaitForLines(4));
  const std::vector<v1::LogLine> lines = logs_.lines();
  EXPECT_THAT(lines[0].message(), HasSubstr("7 lines of this process were dropped"));
  EXPECT_EQ(lines[0].job_id(), "j1");
  EXPECT_EQ(lines[0].level(), "warn");
  EXPECT_EQ(lines[0].fields().at("dropped"), "7");
  EXPECT_EQ(lines[1].message(), "line 7");
  EXPECT_EQ(lines[3].message(), "line 9");
  EXPECT_THAT(logs_.sessions(), ElementsAre("s2"));
}

TEST_F(LogShipperTest, LinesWaitWhileTheCoordinatorIsAwayOrRefuses) {
  Serve();
  LogShipperOptions options;
  options.every = absl::Milliseconds(10);
  const auto shipper = Ship(options);
  logs_.Refuse(absl::ResourceExhaustedError("flood"));
  const LogScope scope({.job_id = "j1"});
  spdlog::info("first");
  ASSERT_TRUE(logs_.WaitForCalls(2));
  server_->Shutdown(absl::ZeroDuration());
  server_.reset();
  logs_.Refuse(absl::OkStatus());
  spdlog::info("second");
  Serve(port_);
  ASSERT_TRUE(logs_.WaitForLines(2));
  EXPECT_THAT(logs_.Messages(), ElementsAre("first", "second"));
  EXPECT_EQ(shipper->dropped(), 0);
}

TEST_F(LogShipperTest, WhatIsRefusedForGoodIsDroppedAndStoppingDoesNotHang) {
  Serve();
  LogShipperOptions options;
  options.every = absl::Milliseconds(10);
  const auto shipper = Ship(options);
  logs_.Refuse(absl::InvalidArgumentError("no"));
  {
    const LogScope scope({.job_id = "j1"});
    spdlog::info("unwanted");
  }
  ASSERT_TRUE(logs_.WaitForCalls(2)) << "the count of dropped lines is still to be told";
  EXPECT_EQ(shipper->dropped(), 1);
  server_->Shutdown(absl::ZeroDuration());
  const absl::Time begin = absl::Now();
  shipper->Stop();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(10));
}

}  // namespace
}  // namespace rlhf::client
