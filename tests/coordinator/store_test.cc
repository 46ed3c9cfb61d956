// The store's contract, against SQLite and against the store of tests; payload segments; the event log.
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "coordinator/event_log.h"
#include "coordinator/store/payload_store.h"
#include "coordinator/store/state_store.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class StoreContract : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override { Open(); }
  void Open() {
    store_.reset();
    if (!GetParam()) {
      store_ = std::make_unique<EdgeMemoryStore>();
      return;
    }
    auto opened = OpenSqliteStore(dir_.File("state.db"));
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }
  void Put(Table table, const std::string& key, const std::string& value) {
    WriteBatch batch;
    batch.Put(table, key, value);
    ASSERT_TRUE(store_->CommitAndWait(std::move(batch)).ok());
  }
  std::vector<std::string> Keys(Table table, const std::string& prefix, const std::string* after = nullptr) {
    std::vector<std::string> keys;
    const auto take = [&](absl::string_view key, absl::string_view) {
      keys.emplace_back(key);
      return true;
    };
    EXPECT_TRUE(
        (after == nullptr ? store_->Scan(table, prefix, take) : store_->ScanAfter(table, prefix, *after, take)).ok());
    return keys;
  }
  ScratchDir dir_;
  std::unique_ptr<StateStore> store_;
};
INSTANTIATE_TEST_SUITE_P(Stores, StoreContract, testing::Bool(),
                         [](const auto& info) { return info.param ? "Sqlite" : "Memory"; });

TEST_P(StoreContract, RowsAreOrderedByKeyAndScannedByPrefix) {
  for (const uint64_t number : {300, 2, 70'000, 1}) Put(Table::kSamples, KeyOf("job/", {number}), absl::StrCat(number));
  Put(Table::kSamples, KeyOf("jobs/", {1}), "another job's");
  Put(Table::kEvents, KeyOf("job/", {9}), "another table's");
  EXPECT_THAT(Keys(Table::kSamples, "job/"),
              ElementsAre(KeyOf("job/", {1}), KeyOf("job/", {2}), KeyOf("job/", {300}), KeyOf("job/", {70'000})));
  const std::string after = KeyOf("job/", {2});
  EXPECT_THAT(Keys(Table::kSamples, "job/", &after), ElementsAre(KeyOf("job/", {300}), KeyOf("job/", {70'000})));
  const std::string before = "";
  EXPECT_EQ(Keys(Table::kSamples, "job/", &before).size(), 4u);
}

TEST_P(StoreContract, ABatchIsAllOrNothingAndTheLastWriteWins) {
  WriteBatch batch;
  batch.Put(Table::kJobs, "a", "1");
  batch.Put(Table::kJobs, "a", "2");
  batch.Put(Table::kJobs, "b", "");
  batch.Put(Table::kJobs, "c", "3");
  batch.Erase(Table::kJobs, "c");
  ASSERT_TRUE(store_->CommitAndWait(std::move(batch)).ok());
  EXPECT_EQ(*store_->Get(Table::kJobs, "a"), "2");
  EXPECT_EQ(*store_->Get(Table::kJobs, "b"), "");
  EXPECT_TRUE(absl::IsNotFound(store_->Get(Table::kJobs, "c").status()));
  EXPECT_TRUE(store_->CommitAndWait(WriteBatch()).ok());
}

TEST_P(StoreContract, ManyRowsAreScannedWhileTheScannerReads) {
  WriteBatch batch;
  for (uint64_t i = 0; i < 1800; ++i) batch.Put(Table::kSamples, KeyOf("j/", {i}), absl::StrCat(i));
  ASSERT_TRUE(store_->CommitAndWait(std::move(batch)).ok());
  uint64_t expected = 0;
  ASSERT_TRUE(store_
                  ->Scan(Table::kSamples, "j/",
                         [&](absl::string_view key, absl::string_view value) {
                           EXPECT_EQ(value, absl::StrCat(expected++));
                           EXPECT_TRUE(store_->Get(Table::kSamples, key).ok());
                           return true;
                         })
                  .ok());
  EXPECT_EQ(expected, 1800u);
}

TEST_P(StoreContract, CallbacksComeInTheOrderOfTheCommits) {
  absl::Mutex mu;
  std::vector<int> order;
  for (int i = 0; i < 200; ++i) {
    WriteBatch batch;
    batch.Put(Table::kJobs, "k", absl::StrCat(i));
    store_->Commit(std::move(batch), [&mu, &order, i](absl::Status status) {
      EXPECT_TRUE(status.ok());
      absl::MutexLock lock(&mu);
      order.push_back(i);
    });
  }
  ASSERT_TRUE(store_->CommitAndWait(WriteBatch()).ok());
  absl::MutexLock lock(&mu);
  ASSERT_EQ(order.size(), 200u);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
  EXPECT_EQ(*store_->Get(Table::kJobs, "k"), "199");
}

class SqliteTest : public StoreContract {};
INSTANTIATE_TEST_SUITE_P(Stores, SqliteTest, testing::Values(true));

TEST_P(SqliteTest, WhatWasAcknowledgedIsThereAfterReopening) {
  Put(Table::kTokens, std::string("\0\xff binary", 9), std::string("\0value", 6));
  Open();
  EXPECT_EQ(*store_->Get(Table::kTokens, std::string("\0\xff binary", 9)), std::string("\0value", 6));
}

TEST_P(SqliteTest, AFileThatIsNoStoreIsRefused) {
  ASSERT_TRUE(
      WriteFileDurably(dir_.File("text.db"),
                       "this is not a database, whatever it says; it is long enough to be read as a page header")
          .ok());
  const auto opened = OpenSqliteStore(dir_.File("text.db"));
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(opened.status()), v1::STORE_UNAVAILABLE);
}

class PayloadTest : public testing::Test {
 protected:
  void Open() {
    auto opened = OpenPayloadStore(dir_.File("payloads"), /*segment_bytes=*/200);
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }
  void SetUp() override { Open(); }
  ScratchDir dir_;
  std::unique_ptr<PayloadStore> store_;
};

TEST_F(PayloadTest, PayloadsAreReadableBeforeAndAfterTheirSync) {
  std::vector<std::pair<v1::PayloadRef, std::string>> written;
  for (int i = 0; i < 20; ++i) {
    const std::string bytes(static_cast<size_t>(10 + 7 * i), static_cast<char>('a' + i));
    written.emplace_back(store_->Append(bytes), bytes);
  }
  EXPECT_GT(written.back().first.segment(), 1u);
  for (const auto& [ref, bytes] : written) EXPECT_EQ(*store_->Read(ref), bytes);
  ASSERT_TRUE(store_->Sync().ok());
  for (const auto& [ref, bytes] : written) EXPECT_EQ(*store_->Read(ref), bytes);
  Open();
  for (const auto& [ref, bytes] : written) EXPECT_EQ(*store_->Read(ref), bytes);
  // Never over what is there.
  EXPECT_GT(store_->Append("x").segment(), written.back().first.segment());
}

TEST_F(PayloadTest, AFlippedByteIsDataLoss) {
  const v1::PayloadRef ref = store_->Append("a sample of text");
  ASSERT_TRUE(store_->Sync().ok());
  const std::string file = dir_.File("payloads/00000001.seg");
  auto bytes = ReadFile(file);
  ASSERT_TRUE(bytes.ok());
  (*bytes)[12] ^= 1;
  ASSERT_TRUE(WriteFileDurably(file, *bytes).ok());
  Open();
  const auto read = store_->Read(ref);
  EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("checksum"));
}

TEST_F(PayloadTest, RowsFollowTheirPayloads) {
  auto sqlite = OpenSqliteStore(dir_.File("state.db"));
  ASSERT_TRUE(sqlite.ok());
  const std::unique_ptr<StateStore> store = WithPayloads(*std::move(sqlite), store_.get());
  const v1::PayloadRef ref = store_->Append("payload");
  WriteBatch batch;
  batch.Put(Table::kSamples, "k", ref.SerializeAsString());
  ASSERT_TRUE(store->CommitAndWait(std::move(batch)).ok());
  Open();  // as another process would
  EXPECT_EQ(*store_->Read(ref), "payload");
}

TEST(EventLogTest, EventsAreNumberedAndReadFromAnyPoint) {
  EdgeMemoryStore store;
  const auto loop = EventLoop::StartThread(Clock::Real());
  for (int restart = 0; restart < 2; ++restart) {
    const auto log = MakeEventLog(&store, loop.get());
    WriteBatch batch;
    for (int i = 0; i < 3; ++i) {
      v1::JobEvent event;
      event.set_message(absl::StrCat(restart, "/", i));
      log->Append("job", event, &batch);
    }
    ASSERT_TRUE(store.CommitAndWait(std::move(batch)).ok());
    int woken = 0;
    const int64_t handle = log->Watch("job", [&] { ++woken; });
    log->Published("job");
    log->Published("other");
    log->Unwatch(handle);
    log->Published("job");
    EXPECT_EQ(woken, 1);
    const auto events = log->Read("job", 3 * restart + 1, 10);
    ASSERT_TRUE(events.ok());
    ASSERT_EQ(events->size(), 2u);
    EXPECT_EQ((*events)[0].sequence(), 3 * restart + 2);
    EXPECT_EQ(log->LastSequence("job"), 3 * restart + 3);
    EXPECT_EQ(log->Read("job", 0, 2)->size(), 2u);
  }
  loop->Stop();
}

}  // namespace
}  // namespace rlhf::coordinator
