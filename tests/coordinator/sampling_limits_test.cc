// The bounds that sampling keeps: workers and score requests by quota, requests by reward server; and what of a result
// is the coordinator's to say, whoever brings it.
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "artifact/sample_id.h"
#include "common/process.h"
#include "coordinator/quotas.h"
#include "coordinator/sampling.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/coordinator/sampling_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using testing::UnorderedElementsAre;

// Answers when the test says so.
class HeldRewards final : public RewardClient {
 public:
  void Score(const std::string& address, v1::ScoreRequest request, absl::Duration,
             absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done) override {
    jobs.push_back(request.job_id());
    servers.push_back(address);
    waiting.push_back({std::move(request), std::move(done)});
  }
  struct Call {
    v1::ScoreRequest request;
    absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done;
  };
  std::vector<std::string> jobs, servers;  // of each request, in order
  std::vector<Call> waiting;
};

class SamplingLimitsTest : public testing::Test, public SamplingListener {
 protected:
  void SetUp() override {
    payloads_ = *OpenPayloadStore(dir_.path());
    SamplingOptions options;
    options.quotas = &quotas_;
    options.score_batch_samples = 2;
    options.score_requests_in_flight = 2;
    sampling_ = MakeSampling(&loop_, &store_, payloads_.get(), fleet_.get(), &rewards_, options);
  }
  void OnStepScored(const std::string&, int64_t) override {}
  void OnSampleFailed(const std::string&, const v1::SampleRow&) override {}

  void Bound(const std::string& project, void (v1::Quota::*set)(int32_t), int32_t most) {
    v1::Quota quota;
    quota.set_project(project);
    (quota.*set)(most);
    WriteBatch batch;
    quotas_.Set(quota, &batch);
  }
  // With so many samples of step 1, each of a prompt of its own.
  void AddJob(const std::string& id, const std::string& project, int samples, bool score = false, int priority = 0,
              const std::string& reference = "", bool asks = false) {
    SamplingPlan plan;
    if (asks) plan.scorer.add_components()->mutable_external()->set_address("scorer:1");
    plan.job_id = id;
    plan.project = project;
    plan.submitter = "ada";
    plan.priority = priority;
    plan.score = score;
    plan.reference_policy = reference;
    auto prompts = std::make_shared<std::vector<v1::Prompt>>();
    for (int i = 0; i < samples; ++i) prompts->emplace_back().set_text(absl::StrCat(id, " ", i));
    plan.prompts = prompts;
    ASSERT_TRUE(sampling_->AddJob(std::move(plan), this).ok());
    Issue(id, samples);
  }
  void Issue(const std::string& id, int samples) {
    WriteBatch batch;
    sampling_->IssueStep(id, ++steps_, 0, samples, &batch);
    v1::PolicySource policy;
    policy.mutable_version()->set_step(steps_);  // whichever step may be leased
    sampling_->SetPolicy(id, policy, &batch);
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    loop_.Run();
  }
  std::string Register(v1::Role role, const std::string& instance) {
    v1::RegisterRequest request;
    request.set_role(role);
    request.set_instance_id(instance);
    request.set_address(instance);
    request.set_protocol_version(kProtocolVersion);
    std::string session;
    fleet_->Register(request, [&](auto response) {
      ASSERT_TRUE(response.ok()) << response.status();
      session = response->session_id();
    });
    loop_.Run();
    return session;
  }
  std::string Worker(const std::string& instance) { return Register(v1::ROLE_ROLLOUT_WORKER, instance); }

  // The samples that it is leased now, as it would submit them.
  std::vector<v1::Sample> Lease(const std::string& session, int most) {
    v1::LeasePromptsRequest request;
    request.set_session_id(session);
    request.set_max_samples(most);
    std::vector<v1::Sample> out;
    sampling_->LeasePrompts(request, [&](absl::StatusOr<v1::LeasePromptsResponse> response) {
      ASSERT_TRUE(response.ok()) << response.status();
      for (const v1::PromptLease& lease : response->leases()) {
        for (const v1::SampleLease& of : lease.samples()) {
          v1::Sample& sample = out.emplace_back();
          *sample.mutable_id() = artifact::SampleIdOf(lease, of.index());
          sample.set_attempt(of.attempt());
          sample.add_response_tokens(7);
          sample.add_behaviour_log_probs(-1);
          *sample.mutable_version_low() = lease.policy().version();
        }
      }
    });
    Tick();
    return out;
  }
  // As many calls as it takes.
  std::vector<v1::Sample> LeaseAll(const std::string& session, size_t samples) {
    std::vector<v1::Sample> out;
    while (out.size() < samples) {
      const std::vector<v1::Sample> more = Lease(session, 64);
      if (more.empty()) ADD_FAILURE() << "only " << out.size() << " of " << samples;
      if (more.empty()) break;
      out.insert(out.end(), more.begin(), more.end());
    }
    return out;
  }
  std::vector<v1::SampleVerdict> Submit(const std::string& session, const std::vector<v1::Sample>& samples) {
    v1::SubmitSamplesRequest request;
    request.set_session_id(session);
    request.mutable_samples()->Assign(samples.begin(), samples.end());
    std::vector<v1::SampleVerdict> verdicts;
    sampling_->SubmitSamples(request, [&](absl::StatusOr<v1::SubmitSamplesResponse> response) {
      ASSERT_TRUE(response.ok()) << response.status();
      verdicts.assign(response->verdicts().begin(), response->verdicts().end());
    });
    loop_.Run();
    return verdicts;
  }
  void Tick() {
    fleet_->Tick();
    sampling_->Tick();
    loop_.Run();
  }
  void Pass(absl::Duration time) {
    clock_.Advance(time);
    Tick();
  }
  // The oldest request that waits; `change` makes another answer of what scores would be.
  void Answer(const std::function<void(v1::ScoreResponse*)>& change = nullptr) {
    ASSERT_FALSE(rewards_.waiting.empty());
    HeldRewards::Call call = std::move(rewards_.waiting.front());
    rewards_.waiting.erase(rewards_.waiting.begin());
    absl::StatusOr<v1::ScoreResponse> response = Ones(call.request);
    if (change) change(&*response);
    call.done(std::move(response));
    loop_.Run();
  }

  ScratchDir dir_;
  FakeClock clock_;
  ManualLoop loop_{&clock_};
  EdgeMemoryStore store_;
  Quotas quotas_;
  std::unique_ptr<PayloadStore> payloads_;
  std::unique_ptr<Fleet> fleet_ = MakeFleet(&loop_, absl::Hours(1), absl::Hours(3));
  HeldRewards rewards_;
  std::unique_ptr<Sampling> sampling_;
  int64_t steps_ = 0;
};

TEST_F(SamplingLimitsTest, AProjectHasNoMoreRolloutWorkersThanItsQuota) {
  Bound("small", &v1::Quota::set_max_rollout_workers, 1);
  AddJob("urgent", "small", 8, /*score=*/false, /*priority=*/9);
  AddJob("other", "large", 8);
  const std::string first = Worker("w0"), second = Worker("w1");
  const std::vector<v1::Sample> urgent = Lease(first, 1);
  ASSERT_THAT(urgent, SizeIs(1));
  EXPECT_EQ(urgent[0].id().job_id(), "urgent");
  EXPECT_TRUE(sampling_->SituationOf("urgent").over_quota);
  const std::vector<v1::Sample> other = Lease(second, 1);
  ASSERT_THAT(other, SizeIs(1));
  EXPECT_EQ(other[0].id().job_id(), "other") << "whatever the priority";
  EXPECT_FALSE(sampling_->SituationOf("other").over_quota);
  const std::vector<v1::Sample> more = Lease(first, 1);
  ASSERT_THAT(more, SizeIs(1));
  EXPECT_EQ(more[0].id().job_id(), "urgent") << "who has it goes on";
}

TEST_F(SamplingLimitsTest, ASecondAttemptIsARolloutWorkerMore) {
  Bound("small", &v1::Quota::set_max_rollout_workers, 1);
  AddJob("job", "small", 12);
  const std::string first = Worker("w0"), second = Worker("w1"), third = Worker("w2");
  std::vector<v1::Sample> samples = LeaseAll(first, 12);
  ASSERT_THAT(samples, SizeIs(12));
  const v1::Sample slow = samples.back();
  samples.pop_back();
  for (const v1::SampleVerdict& verdict : Submit(first, samples)) EXPECT_TRUE(verdict.accepted());
  Pass(absl::Seconds(2));
  EXPECT_THAT(Lease(second, 4), IsEmpty()) << "one worker is all that it may have";
  Bound("small", &v1::Quota::set_max_rollout_workers, 2);
  Pass(absl::Seconds(1));
  const std::vector<v1::Sample> hedge = Lease(second, 4);
  ASSERT_THAT(hedge, SizeIs(1));
  EXPECT_EQ(hedge[0].attempt(), slow.attempt() + 1);
  // Both of them count, the one whose lease was overtaken too.
  EXPECT_EQ(sampling_->SituationOf("job").serving_this, 2);
  Issue("job", 12);
  EXPECT_THAT(Lease(third, 4), IsEmpty());
  EXPECT_FALSE(Lease(second, 4).empty());
}

TEST_F(SamplingLimitsTest, AProjectHasNoMoreScoreRequestsThanItsQuota) {
  Bound("small", &v1::Quota::set_max_score_requests, 1);
  for (const char* server : {"r0", "r1"}) Register(v1::ROLE_REWARD_SERVER, server);
  const std::string worker = Worker("w0");
  AddJob("urgent", "small", 6, /*score=*/true, /*priority=*/9);
  EXPECT_THAT(Submit(worker, LeaseAll(worker, 6)), SizeIs(6));
  AddJob("other", "large", 2, /*score=*/true);
  EXPECT_THAT(Submit(worker, LeaseAll(worker, 2)), SizeIs(2));
  Tick();
  EXPECT_THAT(rewards_.jobs, ElementsAre("urgent", "other"));
  Answer();
  EXPECT_THAT(rewards_.jobs, ElementsAre("urgent", "other", "urgent")) << "one after the other";
}

TEST_F(SamplingLimitsTest, AServerHasTwoRequestsAtOnceAndTheLeastBusyOneGetsTheNext) {
  for (const char* server : {"r0", "r1"}) Register(v1::ROLE_REWARD_SERVER, server);
  const std::string worker = Worker("w0");
  AddJob("job", "p", 12, /*score=*/true);
  EXPECT_THAT(Submit(worker, LeaseAll(worker, 12)), SizeIs(12));
  Tick();
  EXPECT_THAT(rewards_.servers, UnorderedElementsAre("r0", "r1", "r0", "r1")) << "four of six";
  EXPECT_NE(rewards_.servers[0], rewards_.servers[1]);
  const std::string answered = rewards_.servers[0];
  Answer();
  ASSERT_THAT(rewards_.servers, SizeIs(5));
  EXPECT_EQ(rewards_.servers.back(), answered);
}

TEST_F(SamplingLimitsTest, AJobsOwnServiceThatHangsTakesNoOthersPlace) {
  Register(v1::ROLE_REWARD_SERVER, "r0");
  const std::string worker = Worker("w0");
  AddJob("asks", "p", 6, /*score=*/true, /*priority=*/0, "", /*asks=*/true);
  EXPECT_THAT(Submit(worker, LeaseAll(worker, 6)), SizeIs(6));
  Tick();
  EXPECT_THAT(rewards_.jobs, ElementsAre("asks")) << "one request at a time";
  AddJob("computed", "p", 6, /*score=*/true);
  EXPECT_THAT(Submit(worker, LeaseAll(worker, 6)), SizeIs(6));
  AddJob("asks too", "p", 2, /*score=*/true, /*priority=*/0, "", /*asks=*/true);
  EXPECT_THAT(Submit(worker, LeaseAll(worker, 2)), SizeIs(2));
  Tick();
  EXPECT_THAT(std::vector<std::string>(rewards_.jobs.begin() + 1, rewards_.jobs.end()),
              UnorderedElementsAre("computed", "computed", "asks too"));
  Answer();  // of "asks"
  EXPECT_EQ(rewards_.jobs.back(), "asks");
  EXPECT_THAT(rewards_.jobs, SizeIs(5));
}

// What a sample was made from, who made it, and what it is worth is not the worker's to say.
TEST_F(SamplingLimitsTest, AWorkerGivesItsSamplesNeitherPromptsNorScores) {
  const std::string worker = Worker("w0");
  AddJob("job", "p", 2);
  std::vector<v1::Sample> samples = LeaseAll(worker, 2);
  ASSERT_THAT(samples, SizeIs(2));
  for (v1::Sample& sample : samples) {
    sample.mutable_prompt()->set_text("another one");
    sample.mutable_prompt()->set_reference("its own answer");
    sample.mutable_score()->set_total(1e9);
    sample.set_worker_id("somebody else");
  }
  EXPECT_THAT(Submit(worker, samples), SizeIs(2));
  const auto expect_own = [](const v1::Sample& sample) {
    EXPECT_EQ(sample.prompt().text(), absl::StrCat("job ", sample.id().ordinal()));
    EXPECT_EQ(sample.prompt().reference(), "");
    EXPECT_EQ(sample.score().total(), 0);
    EXPECT_EQ(sample.worker_id(), "w0");
  };
  ASSERT_TRUE(payloads_->Sync().ok());
  std::string next;
  const auto listed = sampling_->List("job", -1, "", PageLimit(10), &next);
  ASSERT_TRUE(listed.ok()) << listed.status();
  ASSERT_THAT(*listed, SizeIs(2));
  for (const v1::SampleView& view : *listed) expect_own(view.sample());
  WriteBatch batch;
  const auto assigned = sampling_->AssignStep("job", 1, /*replay=*/false, &batch);
  ASSERT_TRUE(assigned.ok()) << assigned.status();
  for (const v1::Sample& sample : *assigned) expect_own(sample);
}

TEST_F(SamplingLimitsTest, ASampleHasANumberOfEachOfItsTokens) {
  const std::string worker = Worker("w0");
  AddJob("job", "p", 1);
  const auto refused = [&](const std::function<void(v1::Sample*)>& change) {
    std::vector<v1::Sample> samples = LeaseAll(worker, 1);
    for (v1::Sample& sample : samples) change(&sample);
    const std::vector<v1::SampleVerdict> verdicts = Submit(worker, samples);
    return verdicts.size() == 1 && verdicts[0].reason() == v1::SAMPLE_MALFORMED;
  };
  EXPECT_TRUE(refused([](v1::Sample* sample) { sample->add_response_tokens(8); })) << "a log-probability too few";
  EXPECT_TRUE(refused([](v1::Sample* sample) { sample->add_behaviour_log_probs(-1); })) << "one too many";
  for (const float wrong : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()})
    EXPECT_TRUE(refused([&](v1::Sample* sample) { sample->set_behaviour_log_probs(0, wrong); })) << wrong;
  EXPECT_FALSE(refused([](v1::Sample*) {}));
}

TEST_F(SamplingLimitsTest, TheReferencesLogProbabilitiesAreOfEveryTokenAndNumbers) {
  Register(v1::ROLE_REWARD_SERVER, "r0");
  const std::string worker = Worker("w0");
  AddJob("job", "p", 1, /*score=*/true, /*priority=*/0, "sha256:reference");
  EXPECT_THAT(Submit(worker, LeaseAll(worker, 1)), SizeIs(1));
  Tick();
  const auto answer = [&](const std::vector<float>& log_probs) {
    Answer([&](v1::ScoreResponse* response) {
      response->mutable_scores(0)->mutable_score()->mutable_reference_log_probs()->Assign(log_probs.begin(),
                                                                                          log_probs.end());
    });
    const std::string problem = sampling_->LastProblem("job");
    Pass(absl::Minutes(1));
    return problem;
  };
  EXPECT_THAT(answer({}), HasSubstr("expected 1 reference log-probabilities, found 0"));
  EXPECT_THAT(answer({-1, -1}), HasSubstr("expected 1 reference log-probabilities, found 2"));
  EXPECT_THAT(answer({std::numeric_limits<float>::quiet_NaN()}), HasSubstr("log-probability is not finite"));
  EXPECT_EQ(sampling_->Counts("job").scored(), 0);
  EXPECT_EQ(answer({-2}), "");
  EXPECT_EQ(sampling_->Counts("job").scored(), 1);
}

}  // namespace
}  // namespace rlhf::coordinator
