// Cancelling a pipeline over a store that keeps only the first of its writes, as a crash leaves it.
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/status_util.h"
#include "coordinator/jobs.h"
#include "coordinator/jobs/spec.h"
#include "tests/coordinator/jobs_process.h"
#include "tests/coordinator/stored_jobs.h"

namespace rlhf::coordinator {
namespace {

// Rows that outlive the process, which ends after some more of its writes.
class DyingStore final : public StoreOverRows {
 public:
  using StoreOverRows::StoreOverRows;
  void DieAfter(int batches) { left_ = batches; }
  void Enqueue(WriteBatch batch, Committed done) override {
    if (left_ == 0) return;
    --left_;
    rows_->Commit(std::move(batch), std::move(done));
  }

 private:
  int left_ = std::numeric_limits<int>::max();
};

struct PipelineProcess {
  PipelineProcess(EdgeMemoryStore* rows, FakeClock* clock, const std::string& dir)
      : store(rows), process(&store, clock, dir) {
    process.Recover();
  }
  DyingStore store;
  JobsProcess process;
};

class CancelTest : public StoredJobsTest {
 protected:
  // A pipeline at its first stage, which waits for a learner.
  void SetUp() override {
    v1::Job pipeline, stage;
    pipeline.set_id("pipe");
    pipeline.set_state(v1::RUNNING);
    pipeline.set_submitted_by("ada");
    pipeline.mutable_started_at()->set_seconds(1'700'000'000);
    pipeline.mutable_spec()->set_name("pipe");
    pipeline.add_children("stage");
    v1::StageSpec* spec = pipeline.mutable_spec()->mutable_pipeline()->add_stages();
    spec->set_name("sft");
    spec->mutable_sft()->set_model("base");
    spec->mutable_sft()->set_data("data");
    spec->mutable_sft()->set_steps(1);
    spec->mutable_sft()->set_batch_size(1);
    ASSERT_EQ(JoinProblems(CompleteSpec(pipeline.mutable_spec())), "");
    stage.set_id("stage");
    stage.set_parent_id("pipe");
    stage.set_stage("sft");
    stage.set_round(1);
    stage.set_state(v1::PENDING);
    *stage.mutable_spec() = SpecOfStage(pipeline.spec(), *spec, 1, 0);
    (*stage.mutable_resolved())["data"] = "sha256:data";
    Store(pipeline);
    Store(stage);
    process_ = std::make_unique<PipelineProcess>(&rows_, &clock_, dir_.path());
  }

  std::unique_ptr<PipelineProcess> process_;
};

TEST_F(CancelTest, APipelineIsCancelledWithItsStagesOrNotAtAll) {
  ASSERT_EQ(JobRow("pipe").state(), v1::RUNNING);
  process_->store.DieAfter(1);
  v1::CancelJobRequest cancel;
  cancel.set_job_id("pipe");
  bool answered = false;
  process_->process.jobs->Cancel("ada", cancel, [&](absl::StatusOr<v1::Job> job) {
    answered = true;
    EXPECT_TRUE(job.ok()) << job.status();
  });
  process_->process.loop.Run();
  EXPECT_TRUE(answered);
  process_.reset();
  process_ = std::make_unique<PipelineProcess>(&rows_, &clock_, dir_.path());
  EXPECT_EQ(JobRow("pipe").state(), v1::CANCELLED) << JobRow("pipe").reason();
  EXPECT_EQ(JobRow("stage").state(), v1::CANCELLED);
  EXPECT_EQ(JobRow("stage").reason(), "cancelled by ada");
  EXPECT_TRUE(JobRow("stage").has_finished_at());
}

TEST_F(CancelTest, WhyIsInTheJobsRowAndInTheAuditLog) {
  v1::CancelJobRequest cancel;
  cancel.set_job_id("pipe");
  cancel.set_reason("it games its reward");
  process_->process.jobs->Cancel("ada", cancel, [](const absl::StatusOr<v1::Job>& job) { EXPECT_TRUE(job.ok()); });
  process_->process.loop.Run();
  EXPECT_EQ(JobRow("pipe").reason(), "cancelled by ada: it games its reward");
  const auto records = process_->process.oversight->audit().All(
      [](const v1::AuditRecord& record) { return record.action() == "job.cancel"; });
  ASSERT_TRUE(records.ok()) << records.status();
  ASSERT_EQ(records->size(), 1u);
  EXPECT_EQ(records->front().details().at("reason"), "it games its reward");
}

TEST_F(CancelTest, WhatHasEndedOtherwiseIsNotCancelled) {
  const auto cancel = [&](const std::string& id) {
    v1::CancelJobRequest request;
    request.set_job_id(id);
    absl::Status status = absl::UnknownError("no answer");
    process_->process.jobs->Cancel("ada", request, [&](absl::StatusOr<v1::Job> job) { status = job.status(); });
    process_->process.loop.Run();
    return status;
  };
  EXPECT_TRUE(cancel("stage").ok());
  EXPECT_TRUE(cancel("stage").ok()) << "again, as by a client that lost the answer";
  ASSERT_EQ(JobRow("pipe").state(), v1::FAILED);
  const absl::Status late = cancel("pipe");
  EXPECT_EQ(late.code(), absl::StatusCode::kFailedPrecondition) << late;
  EXPECT_EQ(ReasonOf(late), v1::JOB_NOT_ACTIVE);
  EXPECT_THAT(std::string(late.message()), testing::HasSubstr("the job is FAILED"));
  EXPECT_EQ(JobRow("pipe").state(), v1::FAILED);
}

TEST_F(CancelTest, AStageThatIsCancelledFailsItsPipeline) {
  v1::CancelJobRequest cancel;
  cancel.set_job_id("stage");
  process_->process.jobs->Cancel("ada", cancel,
                                 [](absl::StatusOr<v1::Job> job) { EXPECT_TRUE(job.ok()) << job.status(); });
  process_->process.loop.Run();
  EXPECT_EQ(JobRow("stage").state(), v1::CANCELLED);
  EXPECT_EQ(JobRow("pipe").state(), v1::FAILED);
}

}  // namespace
}  // namespace rlhf::coordinator
