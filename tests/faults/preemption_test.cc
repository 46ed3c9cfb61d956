// A job of higher priority takes the learners at a step's end; the one that made room goes on later exactly: an
// undisturbed learner that is fed its batches ends with the same bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

class Preemption : public testing::Test {
 protected:
  static LocalServiceOptions Options() {
    LocalServiceOptions options;
    options.faults = true;
    return options;
  }
  void Submit(const SmallJob& job) { SubmitSmallJob(service_, job); }
  void WaitForStep(const SmallJob& job, int64_t step) {
    LocalService::Until(
        absl::Seconds(60), [&] { return service_.StepOf(job.name) >= step; }, absl::StrCat(job.name, " at ", step));
  }
  void WaitForSuccess(const SmallJob& job) {
    LocalService::Until(
        absl::Seconds(120), [&] { return service_.StateOf(job.name) == "SUCCEEDED"; }, job.name + " succeeds");
  }
  // Submits a job of higher priority, sees the low one make room for it after a checkpoint of its last step, and wait.
  void Preempt(const SmallJob& low, const SmallJob& urgent) {
    Submit(urgent);
    const std::string id = service_.Job(urgent.name).value("id", "");
    ASSERT_NE(id, "");
    LocalService::Until(
        absl::Seconds(30), [&] { return service_.Job(low.name).value("preempted_by", "") == id; },
        low.name + " makes room");
    const nlohmann::json waiting = service_.Job(low.name);
    EXPECT_EQ(waiting.value("state", ""), "PENDING");
    EXPECT_EQ(waiting.value("reason_code", ""), "PREEMPTED");
    const std::string step = waiting.value("step", "");
    EXPECT_EQ(waiting.value("checkpoint_step", ""), step) << "it left without a checkpoint of its last step";
    EXPECT_THAT(service_.Ctl("why " + low.name).output, testing::HasSubstr(urgent.name));
    // It stays where it is while the other trains.
    WaitForStep(urgent, 3);
    const std::string still = service_.Job(low.name).value("step", "");
    EXPECT_EQ(service_.StateOf(urgent.name), "RUNNING") << "it ended before it was looked at: give it more steps";
    EXPECT_EQ(still, step);
  }

  LocalService service_{Options()};
};

TEST_F(Preemption, AJobThatMadeRoomTwiceEndsWithTheBytesOfOneThatDidNot) {
  MakeSmallModel(service_.scratch().path());
  SmallJob low;
  low.name = "low";
  low.steps = 60;
  low.lag = 1;                  // samples of the next step are open when it makes room
  low.checkpoint_every = 1000;  // only when it is asked for one
  SmallJob first = low, second = low;
  first.name = "urgent-1";
  second.name = "urgent-2";
  first.steps = second.steps = 20;
  first.priority = second.priority = 5;
  // No faster than it can be seen.
  service_.Arm("any", "learner/before_step", "sleep:200*");
  Submit(low);
  WaitForStep(low, 3);
  for (const SmallJob& urgent : {first, second}) {
    Preempt(low, urgent);
    ASSERT_FALSE(HasFatalFailure());
    WaitForSuccess(urgent);
    const int64_t step = service_.StepOf(low.name);
    WaitForStep(low, step + 2);
    EXPECT_EQ(service_.Job(low.name).value("preempted_by", ""), "");
    ExpectWhole(service_, urgent);
  }
  service_.Disarm("any", "learner/before_step");
  WaitForSuccess(low);
  ExpectWhole(service_, low);
  for (const SmallJob& job : {low, first, second}) ExpectExactReplay(service_, job);
}

}  // namespace
}  // namespace rlhf
