// Weights from worker to worker, in a whole service: more workers than the learner serves, some of which die while they
// receive, and so while they send on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

constexpr int kWorkers = 5;  // the learner serves two

TEST(WeightsFanOut, WorkersThatDieWhileTheyReceiveCostNothing) {
  LocalServiceOptions options;
  options.faults = true;
  // So few slots that every worker has work in every step.
  options.up = {"--slots", "2", "--rollout-workers", absl::StrCat(kWorkers)};
  const LocalService service(options);
  MakeSmallModel(service.scratch().path());
  SmallJob job;
  job.steps = kOutlastsAKill;
  ASSERT_NO_FATAL_FAILURE(SubmitSmallJob(service, job));
  const auto wait_for_step = [&](int64_t step) {
    LocalService::Until(
        absl::Seconds(60), [&] { return service.StepOf(job.name) >= step; }, absl::StrCat("step ", step));
  };
  const auto relayed = [&] {
    double bytes = 0;
    for (int i = 0; i < kWorkers; ++i) {
      bytes += std::max(0.0, service.Metric(absl::StrCat("rollout-", i), "rlhf_weight_sync_relayed_bytes_total"));
    }
    return bytes;
  };
  wait_for_step(2);
  LocalService::Until(
      absl::Seconds(30), [&] { return relayed() > 0; }, "workers send weights to each other");
  for (int kill = 0; kill < 3; ++kill) {
    service.Arm("any", "rollout/receive_weights", absl::StrCat("kill@", kill + 1));
    LocalService::Until(
        absl::Seconds(30), [&] { return service.Fired("any", "rollout/receive_weights"); }, "a worker dies");
    wait_for_step(service.StepOf(job.name) + 1);
  }
  LocalService::Until(
      absl::Seconds(180), [&] { return service.StateOf(job.name) == "SUCCEEDED"; }, "the job succeeds");
  ExpectWhole(service, job);
}

}  // namespace
}  // namespace rlhf
