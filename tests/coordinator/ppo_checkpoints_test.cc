// What a PPO job keeps for a return to one of its checkpoints, by its `retention`.
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/ppo_driver_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;

class PpoCheckpoints : public PpoDriverTest {
 protected:
  // Six steps of two prompts, a checkpoint after each, and the newest step's samples alone are asked to be kept.
  void TrainSixSteps(int checkpoints) {
    Begin();
    PutJob([](v1::PpoSpec* ppo) {
      ppo->set_steps(8);
      ppo->set_prompts_per_step(2);
      ppo->set_checkpoint_every(1);
    });
    v1::Job row = JobRow();
    row.mutable_spec()->mutable_retention()->set_sample_steps(1);
    row.mutable_spec()->mutable_retention()->set_checkpoints(checkpoints);
    ASSERT_EQ(JoinProblems(CompleteSpec(row.mutable_spec())), "");
    WriteBatch batch;
    batch.Put(Table::kJobs, "job", row.SerializeAsString());
    ASSERT_TRUE(rows_.CommitAndWait(std::move(batch)).ok());
    Recover();
    for (int64_t step = 1; step <= 6; ++step) {
      ASSERT_EQ(Work(), 2);
      AskForBatch(step);
      ASSERT_TRUE(batch_.has_value() && batch_->ok());
      trained_.push_back((***batch_)[0].SerializeAsString());
      Measure();
      CommitStep(step);
      ASSERT_TRUE(committed_.has_value() && committed_->ok());
      Checkpoint(step);
    }
    ASSERT_TRUE(process_->payloads->Sync().ok());
  }
  void Checkpoint(int64_t step) {
    v1::ReportCheckpointRequest request;
    request.set_job_id("job");
    request.set_step(step);
    const Artifacts::Staging staging = process_->artifacts->NewStaging();
    const absl::Status folder = staging.make();
    ASSERT_TRUE(folder.ok()) << folder;
    std::ofstream(staging.path + "/weights") << "of step " << step;
    process_->artifacts->PublishDirectory(staging.path, "checkpoint", "default", "test",
                                          [&](absl::StatusOr<v1::Artifact> made) {
                                            ASSERT_TRUE(made.ok()) << made.status();
                                            request.set_digest(made->digest());
                                          });
    process_->loop.Run();
    process_->jobs->ReportCheckpoint(request, [](absl::StatusOr<v1::ReportCheckpointResponse> response) {
      EXPECT_TRUE(response.ok()) << response.status();
    });
    process_->loop.Run();
  }
  std::set<int64_t> FreedSteps() {
    std::set<int64_t> freed;
    EXPECT_TRUE(rows_
                    .Scan(Table::kSamples, "job/",
                          [&](absl::string_view, absl::string_view value) {
                            v1::SampleRow row;
                            EXPECT_TRUE(row.ParseFromArray(value.data(), static_cast<int>(value.size())));
                            if (row.freed()) freed.insert(row.id().step());
                            return true;
                          })
                    .ok());
    return freed;
  }
  // The newest checkpoint cannot be read.
  void Damaged() {
    v1::FailTrainingRequest request;
    request.set_job_id("job");
    request.set_reason_code("CHECKPOINT_DAMAGED");
    request.set_reason("a bit flipped");
    process_->jobs->FailTraining(request, [](absl::StatusOr<v1::FailTrainingResponse> response) {
      EXPECT_TRUE(response.ok()) << response.status();
    });
    process_->loop.Run();
  }
  // What is trained from again after a return to the newest checkpoint that is left.
  std::string FirstSampleAfterTheCheckpoint() {
    const int64_t step = JobRow().checkpoint_step();
    WriteBatch batch;
    EXPECT_TRUE(process_->sampling->Rollback("job", step, &batch).ok());
    const auto samples = process_->sampling->AssignStep("job", step + 1, /*replay=*/true, &batch);
    EXPECT_TRUE(samples.ok()) << samples.status();
    EXPECT_TRUE(rows_.CommitAndWait(std::move(batch)).ok());
    return samples.ok() ? samples->front().SerializeAsString() : "";
  }

  std::vector<std::string> trained_;  // the first sample of each step
};

TEST_F(PpoCheckpoints, SamplesStayBehindTheOldestCheckpointThatIsKept) {
  TrainSixSteps(/*checkpoints=*/4);
  EXPECT_THAT(FreedSteps(), ElementsAre(1, 2, 3));  // 3, 4, 5 and 6 are kept
  for (const int64_t step : {5, 4, 3}) {
    Damaged();
    ASSERT_EQ(JobRow().checkpoint_step(), step);
    EXPECT_EQ(FirstSampleAfterTheCheckpoint(), trained_[static_cast<size_t>(step)]);
  }
}

TEST_F(PpoCheckpoints, WhereAllCheckpointsStaySamplesAreKeptForTheNewestTwo) {
  TrainSixSteps(/*checkpoints=*/0);
  EXPECT_THAT(FreedSteps(), ElementsAre(1, 2, 3, 4, 5));
  Damaged();
  ASSERT_EQ(JobRow().checkpoint_step(), 5);
  EXPECT_EQ(FirstSampleAfterTheCheckpoint(), trained_[5]);
}

}  // namespace
}  // namespace rlhf::coordinator
