// The rows of a deleted job: they go in small batches, whatever their number, and a restart goes on with them.
#include "coordinator/jobs/deleted_rows.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include <gtest/gtest.h>

#include "coordinator/ledger.h"
#include "coordinator/store/keys.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/fake_clock.h"

namespace rlhf::coordinator {
namespace {

constexpr int kSteps = 1500;

// Commits as the rows under it, and notes how much one batch takes.
class MeasuredStore final : public StoreOverRows {
 public:
  using StoreOverRows::StoreOverRows;
  void Enqueue(WriteBatch batch, Committed done) override {
    largest = std::max(largest, batch.ops.size());
    for (const WriteBatch::Op& op : batch.ops) whole_prefixes += op.all ? 1 : 0;
    rows_->Commit(std::move(batch), std::move(done));
  }
  absl::Status Scan(Table table, absl::string_view prefix,
                    absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) override {
    const absl::Status read = rows_->Scan(table, prefix, fn);
    return table == failing ? absl::UnavailableError("a disk that does not answer") : read;
  }
  std::optional<Table> failing;  // after its rows were read
  size_t largest = 0;
  int whole_prefixes = 0;
};

class DeletedRowsTest : public testing::Test {
 protected:
  void Put(const std::string& job) {
    WriteBatch batch;
    for (int64_t step = 1; step <= kSteps; ++step) {
      const auto number = static_cast<uint64_t>(step);
      batch.Put(Table::kSamples, Ledger::RowKey(job, {step, 0, 0}), "sample");
      batch.Put(Table::kEvents, KeyOf(job + "/", {number}), "event");
      batch.Put(Table::kMeta, KeyOf(CommittedStepPrefix(job), {number}), "step");
    }
    for (const Table table : {Table::kFeedbackTasks, Table::kComparisons}) batch.Put(table, job + "/t0", "row");
    batch.Put(Table::kMeta, KeyOf(CheckpointPrefix(job), {9}), "checkpoint");
    batch.Put(Table::kMeta, KeyOf(MonitorStepPrefix(job), {9}), "monitor");
    ASSERT_TRUE(rows_.CommitAndWait(std::move(batch)).ok());
  }
  int Left() {
    int left = 0;
    for (int table = 0; table < kNumTables; ++table) {
      EXPECT_TRUE(
          rows_.Scan(static_cast<Table>(table), "", [&](absl::string_view, absl::string_view) { return ++left > 0; })
              .ok());
    }
    return left;
  }
  void Start() {
    loop_ = std::make_unique<ManualLoop>(&clock_);
    deleted_ = std::make_unique<DeletedRows>(loop_.get(), &store_, [this] { ++gone_; });
    ASSERT_TRUE(deleted_->Recover().ok());
  }

  FakeClock clock_;
  EdgeMemoryStore rows_;
  MeasuredStore store_{&rows_};
  std::unique_ptr<ManualLoop> loop_;
  std::unique_ptr<DeletedRows> deleted_;
  int gone_ = 0;
};

TEST_F(DeletedRowsTest, TheyGoInBatchesOfABoundedSizeAndNoOthersWithThem) {
  Put("job");
  const int others = Left();
  for (const char* job : {"long", "longer"}) Put(job);
  Start();
  for (const char* job : {"long", "longer"}) {
    WriteBatch batch;
    DeletedRows::Mark(job, &batch);
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    deleted_->Begin(job);
  }
  loop_->Run();
  EXPECT_EQ(Left(), others);
  EXPECT_EQ(gone_, 1);
  EXPECT_LE(store_.largest, 1000u);
  EXPECT_EQ(store_.whole_prefixes, 0);
}

// What a read that failed had found is not erased, and not passed over either.
TEST_F(DeletedRowsTest, AFailedReadIsTriedAgain) {
  Put("job");
  const int others = Left();
  Put("long");
  Start();
  WriteBatch batch;
  DeletedRows::Mark("long", &batch);
  ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  deleted_->Begin("long");
  store_.failing = Table::kEvents;
  loop_->Run();
  EXPECT_GT(Left(), others);
  EXPECT_EQ(gone_, 0);
  store_.failing.reset();
  clock_.Advance(absl::Minutes(2));
  loop_->Run();
  EXPECT_EQ(Left(), others);
  EXPECT_EQ(gone_, 1);
}

TEST_F(DeletedRowsTest, ARestartGoesOnWithThem) {
  Put("job");
  const int others = Left();
  Put("long");
  Start();
  WriteBatch batch;
  DeletedRows::Mark("long", &batch);
  ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  Start();  // before anything was erased
  EXPECT_GT(Left(), others);
  loop_->Run();
  EXPECT_EQ(Left(), others);
  EXPECT_EQ(gone_, 1);
  Start();
  loop_->Run();
  EXPECT_EQ(gone_, 1) << "there was nothing left to do";
}

}  // namespace
}  // namespace rlhf::coordinator
