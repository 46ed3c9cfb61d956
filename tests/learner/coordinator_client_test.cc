// What a rank logs while its calls have to be tried again.
#include "learner/service/coordinator_client.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/mutex.h"
#include "client/cpp/channel.h"
#include "common/log.h"
#include "common/status_util.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "tests/testing/loopback_server.h"

namespace rlhf::learner {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class FakeFleet final : public v1::FleetService::CallbackService {
 public:
  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context, const v1::RegisterRequest*,
                                     v1::RegisterResponse* response) override {
    response->set_session_id("session");
    response->set_heartbeat_interval_ms(1000);
    response->set_lease_ms(60'000);
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerUnaryReactor* Heartbeat(grpc::CallbackServerContext* context, const v1::HeartbeatRequest*,
                                      v1::HeartbeatResponse*) override {
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

// So often a channel asks before it says what the answer was (client/cpp/channel.cc).
constexpr int kAsks = 4;

// Answers commits by what it was told, one after the other, each for a channel's asks; then with OK.
class FakeCoordinator final : public v1::LearnerService::CallbackService {
 public:
  grpc::ServerUnaryReactor* CommitStep(grpc::CallbackServerContext* context, const v1::CommitStepRequest*,
                                       v1::CommitStepResponse*) override {
    absl::Status status;
    {
      absl::MutexLock lock(&mu_);
      if (!answers_.empty()) {
        status = answers_.front();
        answers_.erase(answers_.begin());
      }
    }
    auto* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(status));
    return reactor;
  }
  void AnswerWith(const std::vector<absl::Status>& answers) {
    absl::MutexLock lock(&mu_);
    for (const absl::Status& answer : answers) answers_.insert(answers_.end(), kAsks, answer);
  }

 private:
  absl::Mutex mu_;
  std::vector<absl::Status> answers_ ABSL_GUARDED_BY(mu_);
};

class CoordinatorClientTest : public testing::Test {
 protected:
  void SetUp() override {
    InitLogging("learner", "learner-0", "info", /*json=*/true);
    server_ = ServeOnLoopback({&fleet_, &coordinator_});
    ASSERT_NE(server_, nullptr);
    client::ChannelOptions options;
    options.address = absl::StrCat("127.0.0.1:", server_->port());
    options.tls.insecure = true;
    auto channel = client::MakeChannel(options);
    ASSERT_TRUE(channel.ok()) << channel.status();
    client::FleetSession::Callbacks callbacks;
    callbacks.fill_heartbeat = [](v1::HeartbeatRequest*) {};
    callbacks.on_heartbeat = [](const v1::HeartbeatResponse&) {};
    callbacks.on_session = [](const std::string&) {};
    session_ = client::FleetSession::Start(*channel, v1::RegisterRequest(), callbacks);
    ASSERT_TRUE(session_->WaitRegistered(absl::Seconds(30)));
    client_ = std::make_unique<CoordinatorClient>(*channel, session_.get());
  }
  void TearDown() override {
    if (session_ != nullptr) session_->Stop();
  }
  // What is logged until a commit is taken that is answered so first.
  std::vector<std::string> LoggedWhile(const std::vector<absl::Status>& answers) {
    coordinator_.AnswerWith(answers);
    absl::Mutex mu;
    std::vector<std::string> lines;
    const int64_t observer = AddLogObserver([&](const LogRecord& record) {
      absl::MutexLock lock(&mu);
      if (record.level == "warn") lines.push_back(record.message);
    });
    const auto committed = client_->Commit(v1::GroupAssignment(), v1::CommitStepRequest());
    RemoveLogObserver(observer);
    EXPECT_TRUE(committed.ok()) << committed.status();
    absl::MutexLock lock(&mu);
    return lines;
  }

  FakeFleet fleet_;
  FakeCoordinator coordinator_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<client::FleetSession> session_;
  std::unique_ptr<CoordinatorClient> client_;
};

TEST_F(CoordinatorClientTest, AHaltIsToldAsOneAndOnce) {
  const absl::Status halted = WithReason(absl::UnavailableError("an overseer halted all training"), v1::SERVICE_HALTED);
  EXPECT_THAT(LoggedWhile({halted, halted}), ElementsAre("an overseer halted all training; waiting for that"));
}

TEST_F(CoordinatorClientTest, OnlyWhatTheCoordinatorDidNotSayIsToldAsItsSilence) {
  const std::vector<std::string> lines =
      LoggedWhile({WithReason(absl::UnavailableError("the disk is full"), v1::STORE_UNAVAILABLE),
                   absl::UnavailableError("connection reset"), absl::UnavailableError("connection reset")});
  EXPECT_THAT(lines, ElementsAre(AllOf(HasSubstr("cannot do"), HasSubstr("the disk is full")),
                                 AllOf(HasSubstr("does not answer"), HasSubstr("connection reset"))));
}

}  // namespace
}  // namespace rlhf::learner
