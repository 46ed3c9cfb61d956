// Learners that are told to end while they write a checkpoint.
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/faults/wrap_script.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::HasSubstr;
using testing::Not;

class LearnerStop : public testing::Test {
 protected:
  void Start(const SmallJob& job, std::vector<std::string> up, const LocalService::WordsOf& more = nullptr) {
    LocalServiceOptions options;
    options.faults = true;
    options.up = std::move(up);
    service_ = std::make_unique<LocalService>(options, more);
    job_ = job;
    MakeSmallModel(service_->scratch().path());
  }
  void Submit() { SubmitSmallJob(*service_, job_); }
  void Terminate(const std::string& instance) {
    const pid_t pid = service_->Pid(instance);
    ASSERT_GT(pid, 0) << instance;  // kill(-1) would end everything
    ASSERT_EQ(kill(pid, SIGTERM), 0) << instance;
  }
  // How it ended first: "exit code 0".
  std::string AwaitEnd(const std::string& instance, absl::Duration patience) {
    const std::string what = instance + " ended (";
    std::string how;
    LocalService::Until(
        patience,
        [&] {
          const std::string log = ReadFile(service_->scratch().File("up.log")).value_or("");
          const size_t at = log.find(what);
          if (at != std::string::npos) how = log.substr(at + what.size(), log.find(')', at) - at - what.size());
          return !how.empty();
        },
        instance + " ends");
    return how;
  }
  void Finish() {
    LocalService::Until(
        absl::Seconds(180), [&] { return service_->StateOf(job_.name) == "SUCCEEDED"; }, "the job succeeds");
    ExpectWhole(*service_, job_);
  }

  std::unique_ptr<LocalService> service_;
  SmallJob job_;
};

// Both ranks are told to end while rank 0 writes the checkpoint of step 5. Nobody holds its weights afterwards: had it
// not been written, and reported, the job would begin anew.
TEST_F(LearnerStop, TheCheckpointThatIsBeingWrittenIsFinished) {
  Start(SmallJob(), {"--slots", "32"});
  service_->Arm("any", "learner/checkpoint", "sleep:3000");
  Submit();
  LocalService::Until(
      absl::Seconds(60), [&] { return service_->Fired("any", "learner/checkpoint"); }, "a checkpoint begins");
  for (const char* learner : {"learner-1", "learner-0"}) Terminate(learner);
  for (const char* learner : {"learner-0", "learner-1"}) EXPECT_EQ(AwaitEnd(learner, absl::Seconds(25)), "exit code 0");
  Finish();
  for (const char* learner : {"learner-0", "learner-1"})
    EXPECT_THAT(service_->Log(learner), HasSubstr("from step 6")) << learner;
}

TEST_F(LearnerStop, ACheckpointThatDoesNotFitIntoTheGraceIsGivenUp) {
  SmallJob job;
  job.ranks = 1;
  job.steps = 15;
  Start(job, {"--slots", "32", "--learners", "1"},
        [](const std::string& dir) { return WrapInScript(dir, "learner-0", "exec \"$@\" --grace-seconds 4"); });
  service_->Arm("learner-0", "learner/mid_checkpoint", "sleep:600000@2");
  Submit();
  LocalService::Until(
      absl::Seconds(60), [&] { return service_->Fired("learner-0", "learner/mid_checkpoint"); },
      "the second checkpoint is half written");
  const absl::Time told = absl::Now();
  Terminate("learner-0");
  EXPECT_EQ(AwaitEnd("learner-0", absl::Seconds(30)), "exit code 75");
  EXPECT_LT(absl::Now() - told, absl::Seconds(7));  // its grace, and slack for a busy machine
  EXPECT_THAT(service_->Log("learner-0"), HasSubstr("writing a checkpoint or model does not end within 4s"));
  Finish();
  EXPECT_THAT(service_->Log("learner-0"), HasSubstr("removed 1 unfinished checkpoints and models"));
  EXPECT_THAT(service_->Log("learner-0"), HasSubstr("from step 6"));
  EXPECT_THAT(service_->Log("learner-0"), Not(HasSubstr("from step 11")));
}

}  // namespace
}  // namespace rlhf
