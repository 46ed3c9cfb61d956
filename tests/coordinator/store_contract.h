// What every StateStore promises. Include it in one test file for each kind of store and instantiate StoreContract.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/store/state_store.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {

struct StoreKind {
  const char* name;
  // Opens the store that lies in the folder, or makes it; null to skip the test.
  std::function<std::unique_ptr<StateStore>(const ScratchDir&)> open;
};

class StoreContract : public testing::TestWithParam<StoreKind> {
 protected:
  void SetUp() override { Open(); }
  void Open() {
    store_.reset();
    store_ = GetParam().open(dir_);
    if (store_ == nullptr) GTEST_SKIP() << GetParam().name << " is not there";
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
TEST_P(StoreContract, RowsAreOrderedByKeyAndScannedByPrefix) {
  for (const uint64_t number : {300, 2, 70'000, 1}) Put(Table::kSamples, KeyOf("job/", {number}), absl::StrCat(number));
  Put(Table::kSamples, KeyOf("jobs/", {1}), "another job's");
  Put(Table::kEvents, KeyOf("job/", {9}), "another table's");
  EXPECT_THAT(Keys(Table::kSamples, "job/"), testing::ElementsAre(KeyOf("job/", {1}), KeyOf("job/", {2}),
                                                                  KeyOf("job/", {300}), KeyOf("job/", {70'000})));
  const std::string after = KeyOf("job/", {2});
  EXPECT_THAT(Keys(Table::kSamples, "job/", &after),
              testing::ElementsAre(KeyOf("job/", {300}), KeyOf("job/", {70'000})));
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

TEST_P(StoreContract, APrefixIsErasedWithAllItsRowsAndNoOther) {
  WriteBatch batch;
  for (const char* key : {"job", "job/", "job/a", "job/b\xff", "job/\xff\xff", "job0", "jobs/a"})
    batch.Put(Table::kSamples, key, "1");
  batch.Put(Table::kEvents, "job/a", "1");
  ASSERT_TRUE(store_->CommitAndWait(std::move(batch)).ok());
  WriteBatch erase;
  erase.EraseAll(Table::kSamples, "job/");
  erase.Put(Table::kSamples, "job/later", "1");  // in order, as everything in a batch
  ASSERT_TRUE(store_->CommitAndWait(std::move(erase)).ok());
  EXPECT_THAT(Keys(Table::kSamples, ""), testing::ElementsAre("job", "job/later", "job0", "jobs/a"));
  EXPECT_THAT(Keys(Table::kEvents, ""), testing::ElementsAre("job/a"));
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

TEST_P(StoreContract, TheLastKeyOfAPrefixIsFound) {
  const std::string high("p\xff", 2);
  for (const std::string& key :
       {std::string("o/9"), std::string("p/1"), std::string("p/2"), high + "x", std::string("q")})
    Put(Table::kEvents, key, "");
  EXPECT_EQ(store_->LastKey(Table::kEvents, "p/").value_or("none"), "p/2");
  EXPECT_EQ(store_->LastKey(Table::kEvents, high).value_or("none"), high + "x");
  EXPECT_EQ(store_->LastKey(Table::kEvents, "").value_or("none"), "q");
  EXPECT_TRUE(absl::IsNotFound(store_->LastKey(Table::kEvents, "p/3").status()));
  EXPECT_TRUE(absl::IsNotFound(store_->LastKey(Table::kGates, "").status()));
}

}  // namespace rlhf::coordinator
