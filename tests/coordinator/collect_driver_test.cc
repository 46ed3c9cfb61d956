// A collect job's time: its deadline and its tasks' are counted by monotonic clocks, over restarts.
#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "tests/coordinator/jobs_process.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

class CollectDriverTest : public testing::Test {
 protected:
  // With two tasks, as it was made before.
  void Begin(int64_t deadline_seconds, int64_t task_expiry_seconds) {
    v1::Job job;
    job.set_id("job");
    job.set_state(v1::WAITING);
    job.mutable_started_at()->set_seconds(absl::ToUnixSeconds(clock_.WallNow()));
    job.mutable_spec()->set_name("job");
    v1::CollectSpec* collect = job.mutable_spec()->mutable_collect();
    collect->set_comparisons(2);
    collect->set_deadline_seconds(deadline_seconds);
    collect->set_task_expiry_seconds(task_expiry_seconds);
    WriteBatch batch;
    batch.Put(Table::kJobs, "job", job.SerializeAsString());
    for (const char* id : {"a", "b"}) {
      v1::FeedbackTask task;
      task.set_id(id);
      task.set_job_id("job");
      task.set_kind(v1::FEEDBACK_COMPARISON);
      task.set_state(v1::TASK_OPEN);
      *task.mutable_created_at() = job.started_at();
      batch.Put(Table::kFeedbackTasks, std::string("job/") + id, task.SerializeAsString());
    }
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    Restart();
  }
  void Restart() {
    process_ = std::make_unique<JobsProcess>(&store_, &clock_, dir_.path());
    process_->Recover();
  }
  // As it stands after this time, in which the coordinator's clock ticks.
  v1::Job After(absl::Duration time) {
    clock_.Advance(time);
    process_->jobs->Tick();
    process_->feedback->Tick();
    process_->loop.Run();
    const absl::StatusOr<v1::Job> job = process_->jobs->Get("job", "default");
    EXPECT_TRUE(job.ok()) << job.status();
    return job.value_or(v1::Job());
  }
  int64_t Expired() { return process_->feedback->Stats("job").value_or(v1::GetFeedbackStatsResponse()).expired(); }

  ScratchDir dir_;
  FakeClock clock_;
  EdgeMemoryStore store_;
  std::unique_ptr<JobsProcess> process_;
};

TEST_F(CollectDriverTest, AWallClockThatIsSetMovesNoDeadline) {
  Begin(/*deadline_seconds=*/7200, /*task_expiry_seconds=*/0);
  clock_.ShiftWall(absl::Hours(48));
  EXPECT_EQ(After(absl::Seconds(7199)).state(), v1::WAITING);
  clock_.ShiftWall(-absl::Hours(96));
  const v1::Job late = After(absl::Seconds(2));
  EXPECT_EQ(late.state(), v1::FAILED);
  EXPECT_EQ(late.reason_code(), "DEADLINE");
}

TEST_F(CollectDriverTest, ADeadlineIsCountedOverRestarts) {
  Begin(/*deadline_seconds=*/7200, /*task_expiry_seconds=*/0);
  EXPECT_EQ(After(absl::Seconds(4000)).state(), v1::WAITING);
  process_.reset();
  clock_.Advance(absl::Hours(10));  // nobody could have answered
  clock_.ShiftWall(absl::Hours(1));
  Restart();
  EXPECT_EQ(After(absl::Seconds(3199)).state(), v1::WAITING);
  EXPECT_EQ(After(absl::Seconds(2)).reason_code(), "DEADLINE");
}

TEST_F(CollectDriverTest, AWallClockThatIsSetExpiresNoTask) {
  Begin(/*deadline_seconds=*/0, /*task_expiry_seconds=*/3600);
  clock_.ShiftWall(absl::Hours(48));
  (void)After(absl::Seconds(3599));
  EXPECT_EQ(Expired(), 0);
  clock_.ShiftWall(-absl::Hours(96));
  clock_.Advance(absl::Seconds(2));
  process_->jobs->Tick();
  process_->feedback->Tick();
  EXPECT_EQ(Expired(), 2);
}

}  // namespace
}  // namespace rlhf::coordinator
