// All of a coordinator that jobs need, as one process has it, over rows that outlive it; nothing runs but what the test
// lets run.
#pragma once

#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "coordinator/jobs.h"
#include "coordinator/payload_retention.h"
#include "tests/coordinator/fleet_member.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/fake_clock.h"

namespace rlhf::coordinator {

// Never answers.
class NoRewards final : public RewardClient {
 public:
  void Score(const std::string&, v1::ScoreRequest, absl::Duration,
             absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)>) override {}
};

struct JobsProcess {
  // Null: nobody scores; work on batches is done at once.
  JobsProcess(StateStore* store, FakeClock* clock, const std::string& dir, RewardClient* rewards = nullptr,
              Background* batches = nullptr, int issued_at_once = 65'536)
      : loop(clock) {
    payloads = *OpenPayloadStore(dir + "/payloads");
    fleet = MakeFleet(&loop, absl::Hours(1), absl::Hours(3));
    events = MakeEventLog(store, &loop);
    oversight = MakeOversight(&loop, store);
    artifacts = MakeArtifacts(&loop, &inline_work, store, dir + "/artifacts");
    sampling = MakeSampling(&loop, store, payloads.get(), fleet.get(), rewards != nullptr ? rewards : &no_rewards);
    groups = MakeLearnerGroups(&loop, fleet.get());
    feedback = MakeFeedback(&loop, store);
    retention = std::make_unique<PayloadRetention>(&loop, &inline_work, store, payloads.get());
    jobs = MakeJobs({&loop, &inline_work, store, events.get(), sampling.get(), groups.get(), feedback.get(),
                     oversight.get(), artifacts.get(), nullptr, batches, retention.get(), issued_at_once});
  }
  // Goes on with the jobs that there are.
  void Recover() {
    EXPECT_TRUE(oversight->Recover().ok());
    EXPECT_TRUE(artifacts->Recover().ok());
    EXPECT_TRUE(jobs->Recover().ok());
    loop.Run();
  }

  std::string Register(v1::Role role, const std::string& instance) {
    return RegisterMember(fleet.get(), &loop, role, instance);
  }
  std::vector<v1::PromptLease> Lease(const std::string& session, int most) {
    return LeaseNow(sampling.get(), &loop, session, most);
  }
  // What a check of the job "job" finds.
  Sampling::Findings Check() {
    absl::StatusOr<Sampling::Findings> findings = absl::UnknownError("not checked");
    sampling->Check("job", &inline_work, nullptr,
                    [&](absl::StatusOr<Sampling::Findings> found) { findings = std::move(found); });
    loop.Run();
    EXPECT_TRUE(findings.ok()) << findings.status();
    return findings.value_or(Sampling::Findings());
  }
  // JSON lines, as an artifact; its digest.
  std::string PublishPrompts(const std::string& lines) {
    std::string digest;
    const Artifacts::Staging staging = artifacts->NewStaging();
    const absl::Status folder = staging.make();
    EXPECT_TRUE(folder.ok()) << folder;
    if (!folder.ok()) return digest;
    std::ofstream(staging.path + "/prompts.jsonl") << lines;
    artifacts->PublishDirectory(staging.path, "data", "default", "test", [&](absl::StatusOr<v1::Artifact> made) {
      ASSERT_TRUE(made.ok()) << made.status();
      digest = made->digest();
    });
    loop.Run();
    return digest;
  }

  ManualLoop loop;
  InlineBackground inline_work;
  NoRewards no_rewards;
  std::unique_ptr<PayloadStore> payloads;
  std::unique_ptr<Fleet> fleet;
  std::unique_ptr<EventLog> events;
  std::unique_ptr<Oversight> oversight;
  std::unique_ptr<Artifacts> artifacts;
  std::unique_ptr<Sampling> sampling;
  std::unique_ptr<LearnerGroups> groups;
  std::unique_ptr<Feedback> feedback;
  std::unique_ptr<PayloadRetention> retention;
  std::unique_ptr<Jobs> jobs;
};

}  // namespace rlhf::coordinator
