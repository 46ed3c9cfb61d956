// Leases under faults, with workers and time made by the test.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "artifact/sample_id.h"
#include "coordinator/ledger.h"
#include "coordinator/sampling.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {

inline constexpr absl::Duration kHeartbeat = absl::Milliseconds(500), kLease = absl::Seconds(9);

class NoRewardServer final : public RewardClient {
 public:
  void Score(const std::string&, v1::ScoreRequest, absl::Duration,
             absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done) override {
    done(absl::UnavailableError("none here"));
  }
};

class SamplingFaults : public testing::Test, public SamplingListener {
 protected:
  SamplingFaults() {
    payloads_ = *OpenPayloadStore(dir_.path());
    SamplingOptions options;
    options.lease = kLease;
    options.callers_clock = &callers_clock_;
    sampling_ = MakeSampling(&loop_, &store_, payloads_.get(), fleet_.get(), &reward_, options);
    SamplingPlan plan;
    plan.job_id = "job";
    auto prompts = std::make_shared<std::vector<v1::Prompt>>();
    for (int i = 0; i < 8; ++i) prompts->emplace_back().set_text(absl::StrCat("prompt ", i));
    plan.prompts = prompts;
    EXPECT_TRUE(sampling_->AddJob(std::move(plan), this).ok());
    loop_.Run();
  }
  void OnStepScored(const std::string&, int64_t step) override { scored_.push_back(step); }
  void OnSampleFailed(const std::string&, const v1::SampleRow& row) override { failed_.push_back(row); }

  std::string Register(const std::string& instance) {
    v1::RegisterRequest request;
    request.set_role(v1::ROLE_ROLLOUT_WORKER);
    request.set_instance_id(instance);
    request.set_protocol_version(1);
    std::string session;
    fleet_->Register(request, [&](absl::StatusOr<v1::RegisterResponse> response) { session = response->session_id(); });
    loop_.Run();
    return session;
  }
  void Issue(int64_t step, int prompts) {
    WriteBatch batch;
    sampling_->IssueStep("job", step, next_prompt_, prompts, &batch);
    next_prompt_ += prompts;
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    loop_.Run();
  }
  // What the worker is leased now, without waiting.
  std::vector<v1::LeaseProgress> Lease(const std::string& session, int most) {
    v1::LeasePromptsRequest request;
    request.set_session_id(session);
    request.set_max_samples(most);
    std::vector<v1::LeaseProgress> out;
    sampling_->LeasePrompts(request, [&](absl::StatusOr<v1::LeasePromptsResponse> response) {
      if (!response.ok()) return;
      for (const v1::PromptLease& lease : response->leases()) {
        for (const v1::SampleLease& sample : lease.samples()) {
          v1::LeaseProgress& held = out.emplace_back();
          *held.mutable_id() = artifact::SampleIdOf(lease, sample.index());
          held.set_attempt(sample.attempt());
        }
      }
    });
    sampling_->Tick();  // answers who has waited long enough, here not at all
    loop_.Run();
    return out;
  }
  // So many, in as many calls as that takes; fewer where a call gets none.
  std::vector<v1::LeaseProgress> LeaseAll(const std::string& session, size_t count) {
    std::vector<v1::LeaseProgress> all;
    while (all.size() < count) {
      const auto more = Lease(session, static_cast<int>(count));
      if (more.empty()) break;
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  }
  // A token below 0: a sample with none.
  v1::SampleVerdict Submit(const std::string& session, const v1::LeaseProgress& lease, int token = 7,
                           const std::vector<float>& log_kept_mass = {}) {
    v1::SubmitSamplesRequest request;
    request.set_session_id(session);
    v1::Sample& sample = *request.add_samples();
    *sample.mutable_id() = lease.id();
    sample.set_attempt(lease.attempt());
    if (token >= 0) sample.add_response_tokens(token);
    sample.add_behaviour_log_probs(-1);
    sample.mutable_log_kept_mass()->Assign(log_kept_mass.begin(), log_kept_mass.end());
    v1::SampleVerdict verdict;
    sampling_->SubmitSamples(request, [&](absl::StatusOr<v1::SubmitSamplesResponse> response) {
      ASSERT_TRUE(response.ok()) << response.status();
      verdict = response->verdicts(0);
    });
    loop_.Run();
    return verdict;
  }
  // The worker's heartbeat; returns how many of its leases are not its any more.
  int Report(const std::string& session, const std::vector<v1::LeaseProgress>& leases) {
    v1::HeartbeatRequest request;
    request.set_session_id(session);
    for (const v1::LeaseProgress& lease : leases) *request.add_progress() = lease;
    int revoked = -1;
    fleet_->Heartbeat(request, [&](absl::StatusOr<v1::HeartbeatResponse> response) {
      if (response.ok()) revoked = response->revoked_size();
    });
    loop_.Run();
    return revoked;
  }
  void Pass(absl::Duration time) {
    clock_.Advance(time);
    callers_clock_.Advance(time);
    fleet_->Tick();
    sampling_->Tick();
    loop_.Run();
  }
  // What a check says whose rows and payloads are read now, after `meanwhile`.
  absl::StatusOr<Sampling::Findings> Findings(
      const std::function<void()>& meanwhile = [] {}, const std::function<bool()>& gone = nullptr) {
    QueuedBackground thread;
    std::optional<absl::StatusOr<Sampling::Findings>> findings;
    sampling_->Check("job", &thread, gone,
                     [&](absl::StatusOr<Sampling::Findings> found) { findings = std::move(found); });
    meanwhile();
    loop_.Run();
    EXPECT_FALSE(findings.has_value());
    thread.RunAll();
    loop_.Run();
    return findings.value_or(absl::InternalError("no answer"));
  }
  // Its violations, where all counts were compared.
  std::vector<std::string> Check() {
    const absl::StatusOr<Sampling::Findings> findings = Findings();
    if (!findings.ok()) return {findings.status().ToString()};
    EXPECT_THAT(findings->notes, testing::IsEmpty());
    return findings->violations;
  }
  void ExpectAllAccountedFor() { EXPECT_THAT(Check(), testing::IsEmpty()); }

  ScratchDir dir_;
  FakeClock clock_, callers_clock_;
  ManualLoop loop_{&clock_};
  EdgeMemoryStore store_;
  std::unique_ptr<PayloadStore> payloads_;
  std::unique_ptr<Fleet> fleet_ = MakeFleet(&loop_, kHeartbeat, kLease);
  NoRewardServer reward_;
  std::unique_ptr<Sampling> sampling_;
  std::vector<int64_t> scored_;
  std::vector<v1::SampleRow> failed_;
  int64_t next_prompt_ = 0;
};

}  // namespace rlhf::coordinator
