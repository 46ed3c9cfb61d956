// Payloads that nobody needs: which segments go, when, and that a row never names one that is gone.
#include <filesystem>
#include <memory>
#include <set>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/ledger.h"
#include "coordinator/payload_retention.h"
#include "coordinator/store/keys.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class PayloadRetentionTest : public testing::Test {
 protected:
  void SetUp() override { Start(); }
  // As a process does; what an earlier one had in memory is gone.
  void Start() {
    retention_.reset();
    payloads_ = *OpenPayloadStore(dir_.File("payloads"), /*segment_bytes=*/300);
    retention_ = std::make_unique<PayloadRetention>(&loop_, &background_, &store_, payloads_.get());
  }
  // A trained sample with a text of 250 bytes: each has a segment of its own.
  uint32_t Add(const std::string& job, int64_t step) {
    v1::SampleRow row;
    row.mutable_id()->set_job_id(job);
    row.mutable_id()->set_step(step);
    row.set_state(v1::TRAINED);
    *row.mutable_payload() = payloads_->Append(std::string(250, 'a'));
    WriteBatch batch;
    batch.Put(Table::kSamples, Ledger::RowKey(job, {step, 0, 0}), row.SerializeAsString());
    EXPECT_TRUE(payloads_->Sync().ok());
    EXPECT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    return row.payload().segment();
  }
  v1::SampleRow Row(const std::string& job, int64_t step) {
    v1::SampleRow row;
    const auto value = store_.Get(Table::kSamples, Ledger::RowKey(job, {step, 0, 0}));
    EXPECT_TRUE(value.ok() && row.ParseFromString(*value));
    return row;
  }
  std::set<std::string> Segments() const {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.File("payloads")))
      names.insert(entry.path().stem().string());
    return names;
  }

  ScratchDir dir_;
  FakeClock clock_;
  ManualLoop loop_{&clock_};
  InlineBackground background_;
  EdgeMemoryStore store_;
  std::unique_ptr<PayloadStore> payloads_;
  std::unique_ptr<PayloadRetention> retention_;
};

TEST_F(PayloadRetentionTest, SegmentsThatNoRowNamesGo) {
  for (int64_t step : {1, 2}) Add("gone", step);
  Add("kept", 1);
  WriteBatch batch;
  batch.EraseAll(Table::kSamples, "gone/");
  ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  retention_->SweepAll();
  loop_.Run();
  EXPECT_THAT(Segments(), ElementsAre("00000003"));
  EXPECT_EQ(retention_->freed_bytes(), 2 * 258);
  EXPECT_TRUE(payloads_->Read(Row("kept", 1).payload()).ok());
}

TEST_F(PayloadRetentionTest, TheNewestSegmentStaysOpenForASweepThatNobodyAskedFor) {
  Add("gone", 1);
  WriteBatch batch;
  batch.EraseAll(Table::kSamples, "gone/");
  ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  retention_->Sweep();
  loop_.Run();
  EXPECT_THAT(Segments(), ElementsAre("00000001"));
  Start();  // now it is an earlier process's
  retention_->Sweep();
  loop_.Run();
  EXPECT_THAT(Segments(), IsEmpty());
}

// After a year a start finds thousands of jobs that ended so.
TEST_F(PayloadRetentionTest, WhatWasFreedBeforeAStartIsNeitherReadNorWrittenAgain) {
  for (int64_t step = 1; step <= 2; ++step) Add("job", step);
  retention_->FreeThrough("job", 2);
  loop_.Run();
  Start();
  store_.FailWith(absl::UnavailableError("it is asked to write"));
  retention_->FreeThrough("job", 2);
  loop_.Run();
  store_.FailWith(absl::OkStatus());
  Add("job", 3);
  retention_->FreeThrough("job", 3);  // would wait for a write that failed
  loop_.Run();
  EXPECT_TRUE(Row("job", 3).freed());
  EXPECT_EQ(*store_.Get(Table::kMeta, FreedKey("job")), "3");
}

TEST_F(PayloadRetentionTest, OldStepsKeepTheirRowsAndSaySo) {
  for (int64_t step = 1; step <= 5; ++step) Add("job", step);
  Add("other", 1);
  retention_->FreeThrough("job", 3);
  loop_.Run();
  for (int64_t step = 1; step <= 5; ++step) {
    EXPECT_EQ(Row("job", step).freed(), step <= 3) << step;
    EXPECT_EQ(Row("job", step).has_payload(), step > 3) << step;
    EXPECT_EQ(Row("job", step).state(), v1::TRAINED);
  }
  EXPECT_FALSE(Row("other", 1).freed());
  EXPECT_EQ(*store_.Get(Table::kMeta, FreedKey("job")), "3");
  retention_->FreeThrough("job", 2);  // nothing is taken back
  loop_.Run();
  EXPECT_EQ(*store_.Get(Table::kMeta, FreedKey("job")), "3");
  retention_->SweepAll();
  loop_.Run();
  EXPECT_THAT(Segments(), ElementsAre("00000004", "00000005", "00000006"));
}

TEST_F(PayloadRetentionTest, WhatIsAskedForWhileTheLastRowsAreWrittenIsFreedToo) {
  for (int64_t step = 1; step <= 5; ++step) Add("job", step);
  retention_->FreeThrough("job", 2);
  retention_->FreeThrough("job", 4);  // those of the first call are written, and the loop has not heard of it
  loop_.Run();
  for (int64_t step = 1; step <= 5; ++step) EXPECT_EQ(Row("job", step).freed(), step <= 4) << step;
}

TEST_F(PayloadRetentionTest, ManyRowsAreFreedAcrossARestart) {
  for (int64_t step = 1; step <= 400; ++step) Add("job", step);
  retention_->FreeThrough("job", 100);
  loop_.Run();
  Start();
  retention_->FreeThrough("job", 398);
  loop_.Run();
  for (int64_t step = 1; step <= 400; ++step) EXPECT_EQ(Row("job", step).freed(), step <= 398) << step;
  retention_->SweepAll();
  loop_.Run();
  EXPECT_THAT(Segments(), ElementsAre("00000399", "00000400"));
}

TEST_F(PayloadRetentionTest, AStoreThatFailsDeletesNothing) {
  Add("gone", 1);
  WriteBatch batch;
  batch.EraseAll(Table::kSamples, "gone/");
  ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  store_.FailWith(absl::UnavailableError("disk full"));
  retention_->SweepAll();
  loop_.Run();
  EXPECT_THAT(Segments(), ElementsAre("00000001"));
  store_.FailWith(absl::OkStatus());
  retention_->SweepAll();
  loop_.Run();
  EXPECT_THAT(Segments(), IsEmpty());
}

TEST_F(PayloadRetentionTest, ARowThatCannotBeReadKeepsEverything) {
  Add("gone", 1);
  WriteBatch batch;
  batch.EraseAll(Table::kSamples, "gone/");
  batch.Put(Table::kSamples, "bad", "\xff\xff");
  ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  retention_->SweepAll();
  loop_.Run();
  EXPECT_THAT(Segments(), ElementsAre("00000001"));
}

}  // namespace
}  // namespace rlhf::coordinator
