// Sampling by itself: a store in memory, a clock that stands still, a reward server of the test.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "artifact/sample_id.h"
#include "common/process.h"
#include "common/unsuited.h"
#include "coordinator/sampling.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {

class StepListener final : public SamplingListener {
 public:
  void OnStepScored(const std::string&, int64_t step) override { scored.push_back(step); }
  void OnSampleFailed(const std::string&, const v1::SampleRow& row) override { failed.push_back(row.reason()); }
  std::vector<int64_t> scored;
  std::vector<std::string> failed;
};

// Answers each request by `answer`; nothing while it is unset.
class ScriptedRewards final : public RewardClient {
 public:
  using Answer = std::function<absl::StatusOr<v1::ScoreResponse>(const v1::ScoreRequest&)>;
  void Score(const std::string& address, v1::ScoreRequest request, absl::Duration,
             absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done) override {
    sizes.push_back(request.samples_size());
    asked.push_back(address);
    if (unsuited.count(address) > 0) return done(UnsuitedError("start this server with --precision float32"));
    if (answer) done(answer(request));
  }
  Answer answer;
  std::set<std::string> unsuited;  // addresses
  std::vector<std::string> asked;
  std::vector<int> sizes;
};

inline absl::StatusOr<v1::ScoreResponse> Ones(const v1::ScoreRequest& request) {
  v1::ScoreResponse response;
  for (const v1::Sample& sample : request.samples()) {
    v1::SampleScore* score = response.add_scores();
    *score->mutable_id() = sample.id();
    score->mutable_score()->set_total(1);
  }
  return response;
}
inline absl::StatusOr<v1::ScoreResponse> EachFailsWith(const v1::ScoreRequest& request, absl::StatusCode code) {
  v1::ScoreResponse response;
  for (int i = 0; i < request.samples_size(); ++i) {
    v1::SampleScore* score = response.add_scores();
    *score->mutable_id() = request.samples(i).id();
    score->set_code(static_cast<int>(code));
    score->set_error("the scorer said so");
  }
  return response;
}

// The leases go back with what `change` says of each.
inline v1::ReturnLeasesRequest Returned(const std::string& session, const v1::LeasePromptsResponse& work,
                                        const std::function<void(v1::ReturnedLease*)>& change) {
  v1::ReturnLeasesRequest request;
  request.set_session_id(session);
  for (const v1::PromptLease& lease : work.leases()) {
    for (const v1::SampleLease& sample : lease.samples()) {
      v1::ReturnedLease* returned = request.add_leases();
      *returned->mutable_id() = artifact::SampleIdOf(lease, sample.index());
      returned->set_attempt(sample.attempt());
      change(returned);
    }
  }
  return request;
}

class SamplingTest : public testing::Test {
 protected:
  void SetUp() override { Start(); }
  void TearDown() override { loop_->Stop(); }

  void Start() {
    loop_ = EventLoop::StartThread(&clock_);
    auto payloads = OpenPayloadStore(dir_.File("payloads"));
    ASSERT_TRUE(payloads.ok()) << payloads.status();
    payloads_ = *std::move(payloads);
    fleet_ = MakeFleet(loop_.get(), absl::Hours(1), absl::Hours(3));
    sampling_ = MakeSampling(loop_.get(), &store_, payloads_.get(), fleet_.get(), &rewards_);
    worker_ = Register(v1::ROLE_ROLLOUT_WORKER, "rollout-0");
    Register(v1::ROLE_REWARD_SERVER, "reward-0");
  }
  // As after SIGKILL: only what the store holds is left.
  void Restart() {
    loop_->Stop();
    sampling_.reset();
    fleet_.reset();
    payloads_.reset();
    listener_ = StepListener();
    Start();
  }

  // On the loop's thread, waiting for it; then waits for what that posted.
  void OnLoop(const std::function<void()>& fn) {
    for (const std::function<void()>& each : {fn, std::function<void()>([] {}), std::function<void()>([] {})}) {
      absl::Notification done;
      loop_->Post([&] {
        each();
        done.Notify();
      });
      done.WaitForNotification();
    }
  }
  std::string Register(v1::Role role, const std::string& instance, const std::string& address = "nowhere:1") {
    v1::RegisterRequest request;
    request.set_role(role);
    request.set_instance_id(instance);
    request.set_address(address);
    request.set_protocol_version(kProtocolVersion);
    request.set_slots(64);
    std::string session;
    OnLoop([&] {
      fleet_->Register(request, [&](auto response) {
        ASSERT_TRUE(response.ok()) << response.status();
        session = response->session_id();
      });
    });
    return session;
  }

  void AddJob(int64_t policy_step, int max_attempts = 3, const std::string& id = "job", int priority = 0,
              const std::string& model = "base") {
    SamplingPlan plan;
    plan.job_id = id;
    plan.priority = priority;
    auto prompts = std::make_shared<std::vector<v1::Prompt>>(4);
    for (v1::Prompt& prompt : *prompts) prompt.set_text("say something");
    plan.prompts = prompts;
    plan.policy.set_job_id(id);
    plan.policy.set_artifact(model);
    plan.policy.mutable_version()->set_step(policy_step);
    plan.score = true;
    plan.max_attempts = max_attempts;
    OnLoop([&] { ASSERT_TRUE(sampling_->AddJob(std::move(plan), &listener_).ok()); });
  }
  void Issue(int64_t step, const std::string& id = "job") {
    OnLoop([&] {
      WriteBatch batch;
      sampling_->IssueStep(id, step, (step - 1) * 4, 4, &batch);
      store_.Commit(std::move(batch), [](absl::Status) {});
    });
  }
  v1::LeasePromptsResponse Lease(int most = 64) {
    v1::LeasePromptsRequest request;
    request.set_session_id(worker_);
    request.set_max_samples(most);
    v1::LeasePromptsResponse out;
    OnLoop([&] {
      sampling_->LeasePrompts(request, [&](auto response) {
        if (response.ok()) out = *std::move(response);
      });
    });
    OnLoop([&] { sampling_->Tick(); });  // ends the poll when there is nothing
    return out;
  }
  void Generate(const v1::LeasePromptsResponse& work, const std::string& text = "") {
    v1::SubmitSamplesRequest request;
    request.set_session_id(worker_);
    for (const v1::PromptLease& lease : work.leases()) {
      for (const v1::SampleLease& sample : lease.samples()) {
        v1::Sample* out = request.add_samples();
        *out->mutable_id() = artifact::SampleIdOf(lease, sample.index());
        out->set_attempt(sample.attempt());
        out->set_response_text(text);
        out->add_response_tokens(7);
        out->add_behaviour_log_probs(-1);
        *out->mutable_version_low() = lease.policy().version();
      }
    }
    OnLoop([&] { sampling_->SubmitSamples(request, [](auto response) { ASSERT_TRUE(response.ok()); }); });
    Tick();
  }
  void Tick() {
    for (int i = 0; i < 3; ++i) OnLoop([&] { sampling_->Tick(); });
  }
  v1::LedgerCounts Counts() {
    v1::LedgerCounts counts;
    OnLoop([&] { counts = sampling_->Counts("job"); });
    return counts;
  }

  ScratchDir dir_;
  FakeClock clock_;
  EdgeMemoryStore store_;
  ScriptedRewards rewards_;
  StepListener listener_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<PayloadStore> payloads_;
  std::unique_ptr<Fleet> fleet_;
  std::unique_ptr<Sampling> sampling_;
  std::string worker_;
};

}  // namespace rlhf::coordinator
