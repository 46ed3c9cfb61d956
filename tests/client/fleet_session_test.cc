#include "client/cpp/fleet_session.h"

#include <atomic>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/cpp/channel.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "tests/testing/loopback_server.h"

namespace rlhf::client {
namespace {

using testing::ElementsAre;

constexpr absl::Duration kTimeout = absl::Seconds(20);

// A coordinator that knows the sessions it gave out until it forgets them.
class FakeFleet final : public v1::FleetService::CallbackService {
 public:
  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context, const v1::RegisterRequest* request,
                                     v1::RegisterResponse* response) override {
    auto* reactor = context->DefaultReactor();
    absl::MutexLock lock(&mu_);
    ++registrations_;
    if (!refusal_.ok()) {
      reactor->Finish(ToGrpc(refusal_));
      return reactor;
    }
    session_ = absl::StrCat(request->instance_id(), "#", registrations_);
    response->set_session_id(session_);
    response->set_heartbeat_interval_ms(10);
    response->set_lease_ms(30);
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerUnaryReactor* Heartbeat(grpc::CallbackServerContext* context, const v1::HeartbeatRequest* request,
                                      v1::HeartbeatResponse* response) override {
    auto* reactor = context->DefaultReactor();
    absl::MutexLock lock(&mu_);
    if (request->session_id() != session_) {
      reactor->Finish(ToGrpc(WithReason(absl::NotFoundError("unknown session"), v1::UNKNOWN_SESSION)));
      return reactor;
    }
    ++heartbeats_;
    last_counter_ = request->progress_counter();
    response->set_drain(true);
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  void ForgetSessions() {
    absl::MutexLock lock(&mu_);
    session_.clear();
  }
  void Refuse(absl::Status status) {
    absl::MutexLock lock(&mu_);
    refusal_ = std::move(status);
  }
  bool WaitForHeartbeats(int n) {
    absl::MutexLock lock(&mu_);
    const int target = heartbeats_ + n;
    const auto reached = [this, target]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return heartbeats_ >= target; };
    return mu_.AwaitWithTimeout(absl::Condition(&reached), kTimeout);
  }
  bool WaitForRegistrations(int total) {
    absl::MutexLock lock(&mu_);
    const auto reached = [this, total]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return registrations_ >= total; };
    return mu_.AwaitWithTimeout(absl::Condition(&reached), kTimeout);
  }
  int registrations() {
    absl::MutexLock lock(&mu_);
    return registrations_;
  }
  int64_t last_counter() {
    absl::MutexLock lock(&mu_);
    return last_counter_;
  }

 private:
  absl::Mutex mu_;
  std::string session_ ABSL_GUARDED_BY(mu_);
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);
  int registrations_ ABSL_GUARDED_BY(mu_) = 0;
  int heartbeats_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t last_counter_ ABSL_GUARDED_BY(mu_) = 0;
};

// What the session told its owner.
class Observed {
 public:
  FleetSession::Callbacks Callbacks() {
    return {.fill_heartbeat = [](v1::HeartbeatRequest* request) { request->set_progress_counter(42); },
            .on_heartbeat = [this](const v1::HeartbeatResponse& response) { drain = response.drain(); },
            .on_session =
                [this](const std::string& id) {
                  absl::MutexLock lock(&mu_);
                  sessions_.push_back(id);
                }};
  }
  bool WaitForSessions(size_t n) {
    absl::MutexLock lock(&mu_);
    const auto reached = [this, n]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return sessions_.size() >= n; };
    return mu_.AwaitWithTimeout(absl::Condition(&reached), kTimeout);
  }
  std::vector<std::string> sessions() {
    absl::MutexLock lock(&mu_);
    return sessions_;
  }
  std::atomic<bool> drain{false};

 private:
  absl::Mutex mu_;
  std::vector<std::string> sessions_ ABSL_GUARDED_BY(mu_);
};

class FleetSessionTest : public testing::Test {
 protected:
  std::unique_ptr<RpcServer> Serve(grpc::Service* fleet, int port = 0) { return ServeOnLoopback({fleet}, port); }
  std::unique_ptr<FleetSession> Join(int port) {
    ChannelOptions options;
    options.address = absl::StrCat("127.0.0.1:", port);
    options.tls.insecure = true;
    auto channel = MakeChannel(options);
    EXPECT_TRUE(channel.ok()) << channel.status();
    v1::RegisterRequest identity;
    identity.set_instance_id("worker");
    return FleetSession::Start(*channel, identity, observed_.Callbacks());
  }

  Observed observed_;
};

TEST_F(FleetSessionTest, RegistersAndHeartbeats) {
  FakeFleet fleet;
  const auto server = Serve(&fleet);
  ASSERT_NE(server, nullptr);
  const auto session = Join(server->port());
  ASSERT_TRUE(session->WaitRegistered(kTimeout));
  EXPECT_EQ(session->session_id(), "worker#1");
  EXPECT_THAT(observed_.sessions(), ElementsAre("worker#1"));
  // The first of three was answered, and its answer seen, before the last was sent.
  ASSERT_TRUE(fleet.WaitForHeartbeats(3));
  EXPECT_EQ(fleet.last_counter(), 42);
  EXPECT_TRUE(observed_.drain);
  EXPECT_EQ(fleet.registrations(), 1);
  EXPECT_TRUE(session->fatal().ok());
  session->Stop();
  session->Stop();
}

TEST_F(FleetSessionTest, RegistersAgainWhenTheSessionIsUnknown) {
  FakeFleet fleet;
  const auto server = Serve(&fleet);
  ASSERT_NE(server, nullptr);
  const auto session = Join(server->port());
  ASSERT_TRUE(session->WaitRegistered(kTimeout));
  fleet.ForgetSessions();
  ASSERT_TRUE(observed_.WaitForSessions(2));
  ASSERT_TRUE(fleet.WaitForHeartbeats(1));
  EXPECT_EQ(session->session_id(), "worker#2");
  EXPECT_THAT(observed_.sessions(), ElementsAre("worker#1", "worker#2"));
}

TEST_F(FleetSessionTest, InvalidateRegistersAgainOnceForALateAnswer) {
  FakeFleet fleet;
  const auto server = Serve(&fleet);
  ASSERT_NE(server, nullptr);
  const auto session = Join(server->port());
  ASSERT_TRUE(session->WaitRegistered(kTimeout));
  session->Invalidate("worker#1");
  ASSERT_TRUE(observed_.WaitForSessions(2));
  session->Invalidate("worker#1");
  ASSERT_TRUE(fleet.WaitForHeartbeats(2));
  EXPECT_EQ(fleet.registrations(), 2);
  session->Invalidate();
  ASSERT_TRUE(observed_.WaitForSessions(3));
}

TEST_F(FleetSessionTest, SurvivesACoordinatorRestart) {
  auto first = std::make_unique<FakeFleet>();
  auto server = Serve(first.get());
  ASSERT_NE(server, nullptr);
  const int port = server->port();
  const auto session = Join(port);
  ASSERT_TRUE(session->WaitRegistered(kTimeout));
  server->Shutdown(absl::ZeroDuration());
  server.reset();
  // While nobody is there the session stands: the coordinator may come back and know it.
  EXPECT_EQ(session->session_id(), "worker#1");
  FakeFleet second;
  server = Serve(&second, port);
  ASSERT_NE(server, nullptr);
  ASSERT_TRUE(second.WaitForHeartbeats(1));
  EXPECT_THAT(observed_.sessions(), ElementsAre("worker#1", "worker#1"));
}

TEST_F(FleetSessionTest, WaitsForACoordinatorThatIsNotThereYet) {
  FakeFleet fleet;
  fleet.Refuse(absl::UnavailableError("starting"));
  const auto server = Serve(&fleet);
  ASSERT_NE(server, nullptr);
  const auto session = Join(server->port());
  ASSERT_TRUE(fleet.WaitForRegistrations(2));
  EXPECT_EQ(session->session_id(), "");
  EXPECT_FALSE(session->WaitRegistered(absl::ZeroDuration()));
  fleet.Refuse(absl::OkStatus());
  EXPECT_TRUE(session->WaitRegistered(kTimeout));
}

TEST_F(FleetSessionTest, AVersionMismatchIsFinal) {
  FakeFleet fleet;
  fleet.Refuse(WithReason(absl::FailedPreconditionError("protocol 1, expected 3 or 2"), v1::VERSION_MISMATCH));
  const auto server = Serve(&fleet);
  ASSERT_NE(server, nullptr);
  const auto session = Join(server->port());
  EXPECT_FALSE(session->WaitRegistered(kTimeout));
  EXPECT_TRUE(absl::IsFailedPrecondition(session->fatal()));
  EXPECT_EQ(ReasonOf(session->fatal()), v1::VERSION_MISMATCH);
  EXPECT_EQ(fleet.registrations(), 1);
}

// Never answers a registration; ends it when the caller gives up.
class SilentFleet final : public v1::FleetService::CallbackService {
 public:
  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context, const v1::RegisterRequest* request,
                                     v1::RegisterResponse* response) override {
    class Silence final : public grpc::ServerUnaryReactor {
     public:
      void OnCancel() override { Finish(grpc::Status::CANCELLED); }
      void OnDone() override { delete this; }
    };
    auto* reactor = new Silence;
    asked.Notify();
    return reactor;
  }
  absl::Notification asked;
};

TEST_F(FleetSessionTest, StopDoesNotWaitForAnAnswer) {
  SilentFleet fleet;
  const auto server = Serve(&fleet);
  ASSERT_NE(server, nullptr);
  const auto session = Join(server->port());
  ASSERT_TRUE(fleet.asked.WaitForNotificationWithTimeout(kTimeout));
  const absl::Time before = absl::Now();
  session->Stop();
  EXPECT_LT(absl::Now() - before, absl::Seconds(2)) << "the call's own deadline is 2.5 s";
  EXPECT_FALSE(session->WaitRegistered(kTimeout));
  EXPECT_TRUE(session->fatal().ok());
}

}  // namespace
}  // namespace rlhf::client
