// What scorers' failures cost, and how many samples a request to them has.
#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "tests/coordinator/sampling_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST_F(SamplingTest, AScorerThatIsAwayCostsNoAttempt) {
  rewards_.answer = [](const auto& request) { return EachFailsWith(request, absl::StatusCode::kUnavailable); };
  AddJob(0, /*max_attempts=*/3);
  Issue(1);
  Generate(Lease());
  for (int i = 0; i < 20; ++i) {
    clock_.Advance(absl::Seconds(31));
    Tick();
  }
  EXPECT_GE(rewards_.sizes.size(), 20u);
  EXPECT_THAT(listener_.failed, IsEmpty());
  EXPECT_EQ(Counts().generated(), 4);
  OnLoop([&] { EXPECT_THAT(sampling_->LastProblem("job"), HasSubstr("the scorer said so")); });
  rewards_.answer = Ones;
  clock_.Advance(absl::Seconds(31));
  Tick();
  EXPECT_EQ(Counts().scored(), 4);
  OnLoop([&] { EXPECT_EQ(sampling_->LastProblem("job"), ""); });
}

TEST_F(SamplingTest, AScorersOwnErrorSpendsAttemptsAndThenFailsTheSample) {
  rewards_.answer = [](const auto& request) { return EachFailsWith(request, absl::StatusCode::kInternal); };
  AddJob(0, /*max_attempts=*/3);
  Issue(1);
  Generate(Lease());
  for (int i = 0; i < 3; ++i) {
    clock_.Advance(absl::Seconds(31));
    Tick();
  }
  ASSERT_EQ(listener_.failed.size(), 4u);
  EXPECT_THAT(listener_.failed[0], HasSubstr("the scorer said so"));
  EXPECT_EQ(Counts().failed(), 4);
}

// A number that is not finite would come to people and other jobs as none: JSON has no such number.
TEST_F(SamplingTest, AScoreThatIsNotFiniteInAnyPartIsNoScore) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const std::vector<std::pair<std::string, std::function<void(v1::Score*)>>> wrong = {
      {"the score is not finite", [&](v1::Score* score) { score->set_total(nan); }},
      {"the gold score is not finite", [&](v1::Score* score) { score->set_gold_total(infinity); }},
      {"the value of component \"liked\" is not finite",
       [&](v1::Score* score) {
         score->add_components()->set_name("good");
         v1::ComponentScore* component = score->add_components();
         component->set_name("liked");
         component->set_value(nan);
       }},
      {"the value of component \"honest\" is not finite", [&](v1::Score* score) {
         v1::ComponentScore* component = score->add_gold();
         component->set_name("honest");
         component->set_value(-infinity);
       }}};
  AddJob(/*policy_step=*/100, /*max_attempts=*/1);
  for (size_t i = 0; i < wrong.size(); ++i) {
    rewards_.answer = [&](const v1::ScoreRequest& request) {
      absl::StatusOr<v1::ScoreResponse> response = Ones(request);
      wrong[i].second(response->mutable_scores(0)->mutable_score());
      return response;
    };
    listener_.failed.clear();
    Issue(static_cast<int64_t>(i) + 1);
    Generate(Lease());
    ASSERT_EQ(listener_.failed.size(), 1u) << wrong[i].first;
    EXPECT_THAT(listener_.failed[0], HasSubstr(wrong[i].first));
    EXPECT_EQ(Counts().scored(), 3 * static_cast<int64_t>(i + 1));
  }
}

TEST_F(SamplingTest, RequestsThatTakeTooLongAreHalved) {
  AddJob(0);
  Issue(1);
  rewards_.answer = [](const v1::ScoreRequest& request) -> absl::StatusOr<v1::ScoreResponse> {
    if (request.samples_size() > 1) return absl::DeadlineExceededError("60 s");
    return Ones(request);
  };
  Generate(Lease());
  for (int i = 0; i < 12; ++i) {
    clock_.Advance(absl::Seconds(31));
    Tick();
  }
  EXPECT_EQ(Counts().scored(), 4);
  EXPECT_THAT(listener_.scored, ElementsAre(1));
}

// One whose volume hangs while it loads a model goes on with its heartbeats, and each request at it takes its whole
// time.
TEST_F(SamplingTest, AServerThatCompletesNothingIsNotAskedWhileAnotherIsThere) {
  AddJob(/*policy_step=*/100);
  std::map<std::string, std::string> sessions;  // by address
  for (const char* at : {"hangs:0", "hangs:1", "hangs:2", "hangs:3"})
    sessions[at] = Register(v1::ROLE_REWARD_SERVER, at, at);
  rewards_.answer = [this](const v1::ScoreRequest& request) -> absl::StatusOr<v1::ScoreResponse> {
    if (absl::StartsWith(rewards_.asked.back(), "hangs")) return absl::DeadlineExceededError("60 s");
    return Ones(request);
  };
  const auto beat = [&](const std::string& at, uint64_t completed) {
    v1::HeartbeatRequest request;
    request.set_session_id(sessions[at]);
    request.set_progress_counter(completed);
    OnLoop([&] { fleet_->Heartbeat(request, [](auto response) { EXPECT_TRUE(response.ok()); }); });
  };
  const auto asked = [this](const std::string& at) {
    return std::count(rewards_.asked.begin(), rewards_.asked.end(), at);
  };
  const auto pass = [&] {
    clock_.Advance(absl::Seconds(31));
    for (const auto& [at, session] : sessions) beat(at, 0);
    Tick();
  };
  for (int i = 0; i < 2; ++i) pass();  // what takes too long here takes no time
  for (int64_t step = 1; step <= 12; ++step) {
    Issue(step);
    Generate(Lease());
    for (int i = 0; i < 8 && Counts().scored() < 4 * step; ++i) pass();
    ASSERT_EQ(Counts().scored(), 4 * step);
  }
  // Of twelve steps at most one was sent there, as a whole or in parts.
  for (const auto& [at, session] : sessions) EXPECT_LE(asked(at), 4) << at;

  // Where nobody else is, they are asked all the same; and before those the one that completes something again.
  Register(v1::ROLE_REWARD_SERVER, "reward-0", "hangs:last");
  Issue(13);
  Generate(Lease());
  for (int i = 0; i < 8; ++i) pass();
  rewards_.asked.clear();
  pass();
  EXPECT_THAT(rewards_.asked, testing::Not(IsEmpty()));
  beat("hangs:2", 1);
  rewards_.asked.clear();
  rewards_.answer = Ones;
  clock_.Advance(absl::Seconds(31));
  Tick();
  EXPECT_EQ(asked("hangs:2"), static_cast<int64_t>(rewards_.asked.size()));
  EXPECT_EQ(Counts().scored(), 4 * 13);
}

TEST_F(SamplingTest, RequestsAreCutByTheirBytesToo) {
  rewards_.answer = [](const v1::ScoreRequest& request) -> absl::StatusOr<v1::ScoreResponse> {
    if (request.ByteSizeLong() > (64 << 20)) return absl::ResourceExhaustedError("message larger than max");
    return Ones(request);
  };
  AddJob(0);
  Issue(1);
  Generate(Lease(), std::string(7 << 20, 'x'));
  Tick();
  EXPECT_EQ(Counts().scored(), 4);
  EXPECT_THAT(rewards_.sizes, ElementsAre(2, 2));
  Issue(2);
  v1::PolicySource newer;
  newer.set_job_id("job");
  newer.mutable_version()->set_step(1);
  OnLoop([&] {
    WriteBatch batch;
    sampling_->SetPolicy("job", newer, &batch);
  });
  rewards_.sizes.clear();
  Generate(Lease(), std::string(17 << 20, 'x'));
  Tick();
  EXPECT_EQ(Counts().scored(), 8);
  EXPECT_THAT(rewards_.sizes, ElementsAre(1, 1, 1, 1));
}

TEST_F(SamplingTest, RequestsGrowAgainWhenTheyAreInTime) {
  AddJob(/*policy_step=*/100);
  size_t most = 1;  // samples that a scorer manages in time
  rewards_.answer = [&most](const v1::ScoreRequest& request) -> absl::StatusOr<v1::ScoreResponse> {
    if (static_cast<size_t>(request.samples_size()) > most) return absl::DeadlineExceededError("60 s");
    return Ones(request);
  };
  int64_t step = 0;
  const auto score_steps = [&](int steps) {
    for (const int64_t end = step + steps; step < end;) {
      Issue(++step);
      Generate(Lease());
      for (int i = 0; i < 12 && Counts().scored() < 4 * step; ++i) {
        clock_.Advance(absl::Seconds(31));
        Tick();
      }
      ASSERT_EQ(Counts().scored(), 4 * step);
    }
  };
  score_steps(1);
  EXPECT_THAT(rewards_.sizes, ElementsAre(4, 2, 2, 1, 1, 1, 1));
  most = 4;
  // 16 requests of one sample, 16 of two, then all four at once.
  score_steps(3 + 8);
  rewards_.sizes.clear();
  score_steps(1);
  EXPECT_THAT(rewards_.sizes, ElementsAre(4));

  // Too much again: now doubling takes twice as many.
  most = 2;
  score_steps(1 + 8);
  rewards_.sizes.clear();
  score_steps(1);
  EXPECT_THAT(rewards_.sizes, ElementsAre(2, 2));
}

}  // namespace
}  // namespace rlhf::coordinator
