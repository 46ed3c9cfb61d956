// The coordinator is killed twenty times in a job: ready again within five seconds each time, and nothing is lost.
#include <gtest/gtest.h>

#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

TEST(CoordinatorKills, TwentyInAJobLoseNothing) {
  LocalServiceOptions options;
  options.faults = true;
  LocalService service(options);
  MakeSmallModel(service.scratch().path());
  SmallJob job;
  job.steps = 600;  // it is not to end before the twentieth kill, also where a step takes 30 ms
  job.lag = 1;
  ASSERT_NO_FATAL_FAILURE(SubmitSmallJob(service, job));
  int64_t step = 1;
  for (int kill_number = 0; kill_number < 20; ++kill_number) {
    // Some progress between two kills, so that each meets another state.
    LocalService::Until(
        absl::Seconds(60), [&] { return service.StepOf(job.name) > step; }, "the job goes on");
    step = service.StepOf(job.name);
    const pid_t before = service.Pid("coordinator");
    ASSERT_GT(before, 0);  // kill(-1) would end everything
    ASSERT_EQ(kill(before, SIGKILL), 0);
    const absl::Time killed = absl::Now();
    LocalService::Until(
        absl::Seconds(20), [&] { return service.Pid("coordinator") != before && service.StepOf(job.name) > 0; },
        "the coordinator answers");
    EXPECT_LT(absl::Now() - killed, absl::Seconds(5)) << "kill " << kill_number;
  }
  LocalService::Until(
      absl::Seconds(120), [&] { return service.StateOf(job.name) == "SUCCEEDED"; }, "the job succeeds");
  ExpectWhole(service, job);
  ExpectExactReplay(service, job);
}

}  // namespace
}  // namespace rlhf
