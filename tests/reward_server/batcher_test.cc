// What the batcher computes together, and what it does not compute at all.
#include "reward_server/batcher.h"

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "common/unsuited.h"
#include "reward_server/reward_service.h"
#include "tests/testing/loopback_server.h"

namespace rlhf::reward {
namespace {

using testing::ElementsAre;

v1::ScoreRequest RequestOf(const std::string& job, int ordinal) {
  v1::ScoreRequest request;
  request.set_job_id(job);
  v1::Sample& sample = *request.add_samples();
  sample.mutable_id()->set_ordinal(ordinal);
  sample.set_response_text("text");
  return request;
}

// Computes nothing before the first batch is let go, and remembers what it computed.
class Held {
 public:
  Batcher::Compute Compute() {
    return [this](const v1::ScoreRequest& request) {
      if (!begun_.HasBeenNotified()) begun_.Notify();
      go_.WaitForNotification();
      absl::MutexLock lock(&mu_);
      v1::ScoreResponse response;
      for (const v1::Sample& sample : request.samples()) {
        computed_.push_back(sample.id().ordinal());
        response.add_scores();
      }
      return response;
    };
  }
  void WaitUntilItComputes() { begun_.WaitForNotification(); }
  void Go() { go_.Notify(); }
  std::vector<int> computed() {
    absl::MutexLock lock(&mu_);
    return computed_;
  }

 private:
  absl::Notification begun_, go_;
  absl::Mutex mu_;
  std::vector<int> computed_ ABSL_GUARDED_BY(mu_);
};

TEST(BatcherTest, WhatNobodyWaitsForIsNotComputed) {
  Held held;
  std::vector<std::string> replies;  // of the batcher's thread
  {
    Batcher batcher(held.Compute(), {}, [](int, absl::Duration) {});
    const auto submit = [&](const std::string& job, int ordinal, bool gone) {
      batcher.Submit(
          RequestOf(job, ordinal),
          [&replies, ordinal](absl::StatusOr<v1::ScoreResponse> response) {
            replies.push_back(absl::StrCat(ordinal, " ", absl::StatusCodeToString(response.status().code())));
          },
          [gone] { return gone; });
    };
    submit("a", 0, false);
    held.WaitUntilItComputes();
    submit("a", 1, true);
    submit("a", 2, false);
    submit("b", 3, true);
    held.Go();
  }
  EXPECT_THAT(held.computed(), ElementsAre(0, 2));
  EXPECT_THAT(replies, ElementsAre("0 OK", "1 CANCELLED", "3 CANCELLED", "2 OK"));
}

TEST(BatcherTest, AUsersServiceThatHangsHoldsUpItsOwnJobAlone) {
  absl::Notification hung, go_on;
  absl::Mutex mu;
  std::vector<std::string> replies;
  BatcherOptions options;
  options.asking_threads = 2;
  {
    Batcher batcher(
        [&](const v1::ScoreRequest& request) {
          if (request.job_id() == "hangs") {
            if (!hung.HasBeenNotified()) hung.Notify();
            go_on.WaitForNotification();
          }
          v1::ScoreResponse response;
          for (int i = 0; i < request.samples_size(); ++i) response.add_scores();
          return response;
        },
        options, [](int, absl::Duration) {});
    const auto submit = [&](const std::string& job, int ordinal, bool asks, absl::Notification* replied) {
      v1::ScoreRequest request = RequestOf(job, ordinal);
      if (asks) request.mutable_scorer()->add_components()->mutable_external()->set_address("scorer:1");
      batcher.Submit(std::move(request), [&, job, replied](const absl::StatusOr<v1::ScoreResponse>&) {
        absl::MutexLock lock(&mu);
        replies.push_back(job);
        if (replied != nullptr) replied->Notify();
      });
    };
    submit("hangs", 0, true, nullptr);
    hung.WaitForNotification();
    submit("hangs", 1, true, nullptr);  // takes no second thread
    absl::Notification computed, asked;
    submit("computed", 2, false, &computed);
    submit("asks", 3, true, &asked);
    computed.WaitForNotification();
    asked.WaitForNotification();
    go_on.Notify();
  }
  EXPECT_THAT(replies,
              ElementsAre(testing::AnyOf("computed", "asks"), testing::AnyOf("computed", "asks"), "hangs", "hangs"));
}

// Tells the test when the server knows that a call was given up.
class Watched : public RewardServiceAdapter {
 public:
  using RewardServiceAdapter::RewardServiceAdapter;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override {
    {
      absl::MutexLock lock(&mu_);
      contexts_[request->samples(0).id().ordinal()] = context;
    }
    return RewardServiceAdapter::Score(context, request, response);
  }
  bool Cancelled(int ordinal) {
    absl::MutexLock lock(&mu_);
    const auto it = contexts_.find(ordinal);
    return it != contexts_.end() && it->second->IsCancelled();
  }

 private:
  absl::Mutex mu_;
  std::map<int, grpc::CallbackServerContext*> contexts_ ABSL_GUARDED_BY(mu_);
};

TEST(BatcherTest, ACallThatTimedOutIsNotComputed) {
  Held held;
  Batcher batcher(held.Compute(), {}, [](int, absl::Duration) {});
  Watched service(&batcher);
  const auto server = ServeOnLoopback({&service});
  ASSERT_NE(server, nullptr);
  const auto stub = v1::RewardService::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", server->port()), grpc::InsecureChannelCredentials()));
  grpc::ClientContext patient, hasty;
  const v1::ScoreRequest first = RequestOf("a", 0), second = RequestOf("a", 1);
  v1::ScoreResponse response, none;
  absl::Notification answered;
  stub->async()->Score(&patient, &first, &response, [&](const grpc::Status& status) {
    EXPECT_TRUE(status.ok()) << status.error_message();
    answered.Notify();
  });
  held.WaitUntilItComputes();
  hasty.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(300)));
  EXPECT_EQ(stub->Score(&hasty, second, &none).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  const absl::Time patience = absl::Now() + absl::Seconds(20);
  while (!service.Cancelled(1) && absl::Now() < patience) std::this_thread::yield();
  ASSERT_TRUE(service.Cancelled(1));
  held.Go();
  answered.WaitForNotification();
  batcher.Stop();
  EXPECT_THAT(held.computed(), ElementsAre(0));
  server->Shutdown(absl::Seconds(5));
}

TEST(BatcherTest, WhatTheServerDoesNotSuitIsRefusedByAMarkThatArrives) {
  Held held;
  held.Go();
  Batcher batcher(held.Compute(), {}, [](int, absl::Duration) {});
  RewardServiceAdapter service(&batcher, [](const v1::ScoreRequest& request) {
    return request.deterministic() ? UnsuitedError("start it otherwise") : absl::OkStatus();
  });
  const auto server = ServeOnLoopback({&service});
  ASSERT_NE(server, nullptr);
  const auto stub = v1::RewardService::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", server->port()), grpc::InsecureChannelCredentials()));
  v1::ScoreRequest request = RequestOf("a", 0);
  for (const bool deterministic : {true, false}) {
    request.set_deterministic(deterministic);
    grpc::ClientContext context;
    v1::ScoreResponse response;
    const absl::Status status = FromGrpc(stub->Score(&context, request, &response));
    EXPECT_EQ(IsUnsuited(Annotate(status, "reward server")), deterministic) << status;
    EXPECT_EQ(status.message(), deterministic ? "start it otherwise" : "");
    EXPECT_EQ(response.scores_size(), deterministic ? 0 : 1);
  }
  server->Shutdown(absl::Seconds(5));
}

TEST(RewardServiceRoles, OnlyTheCoordinatorAsksForScores) {
  const Authorizer authorize = AuthorizeScoring("");
  const std::string score = "/rlhf.v1.RewardService/Score", health = "/grpc.health.v1.Health/Check",
                    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  for (const std::string role : {"coordinator", "rollout_worker", "learner", "reward_server", "visitor"}) {
    const std::string id = absl::StrCat("spiffe://test/role/", role, "/instance/one");
    for (const std::string& method : {score, reflection}) {
      const auto caller = authorize(method, "a token", id);
      EXPECT_EQ(caller.ok(), role == "coordinator") << method << " by " << role;
      if (!caller.ok()) {
        EXPECT_TRUE(absl::IsPermissionDenied(caller.status())) << caller.status();
      }
    }
    const auto watcher = authorize(health, "", id);
    ASSERT_TRUE(watcher.ok()) << watcher.status();
    EXPECT_EQ(watcher->subject, "one");
    EXPECT_EQ(watcher->role, role);
  }
  for (const std::string& method : {score, health})
    EXPECT_TRUE(absl::IsUnauthenticated(authorize(method, "a token", "").status())) << method;
}

}  // namespace
}  // namespace rlhf::reward
