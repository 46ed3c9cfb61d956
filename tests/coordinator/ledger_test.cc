// Whatever happens in whatever order, the counts add up, and the rows say the same as memory.
#include "coordinator/ledger.h"

#include <random>

#include <gtest/gtest.h>

#include "tests/coordinator/memory_store.h"

namespace rlhf::coordinator {
namespace {

v1::LedgerCounts Recount(EdgeMemoryStore& store) {
  v1::LedgerCounts counts;
  EXPECT_TRUE(store
                  .Scan(Table::kSamples, Ledger::Prefix("job"),
                        [&](absl::string_view, absl::string_view value) {
                          v1::SampleRow row;
                          row.ParseFromArray(value.data(), static_cast<int>(value.size()));
                          CountSample(row.state(), &counts);
                          return true;
                        })
                  .ok());
  return counts;
}

class RandomHistory {
 public:
  explicit RandomHistory(uint64_t seed) : random_(seed), ledger_(std::make_unique<Ledger>("job")) {}

  void Step() {
    WriteBatch batch;
    const SampleKey key = Any();
    const v1::SampleRow* row = ledger_->Find(key);
    switch (random_() % 12) {
      case 0:
        for (int i = 0; i < 3; ++i) ledger_->Issue({next_step_, i, 0}, prompt_++, &batch);
        ++next_step_;
        break;
      case 1:
      case 2:
      case 3:
        if (row != nullptr && row->state() == v1::QUEUED) {
          const int attempt = row->attempt();
          EXPECT_EQ(ledger_->Lease(key, "w", &batch), attempt + 1);
        }
        break;
      case 4:
        if (row != nullptr && row->state() == v1::LEASED) ledger_->Requeue(key, &batch);
        break;
      case 5:
      case 6:
        if (row != nullptr && row->state() == v1::LEASED) ledger_->Generated(key, Payload(), "digest", {}, &batch);
        break;
      case 7:
        if (row != nullptr && row->state() == v1::GENERATED) ledger_->Scored(key, Payload(), &batch);
        break;
      case 8:
        if (row != nullptr && row->state() == v1::SCORED) ledger_->Assign(key, &batch);
        break;
      case 9:
        if (row != nullptr && row->state() == v1::ASSIGNED)
          ledger_->Train(key, &batch);
        else if (row != nullptr && row->state() == v1::TRAINED)
          ledger_->Untrain(key, &batch);
        break;
      case 10:
        if (row != nullptr && IsOpen(row->state()) && row->state() != v1::QUEUED) {
          const int attempt = row->attempt();
          ledger_->Replace(key, random_() % 2 == 0 ? v1::STALE : v1::SAMPLE_FAILED, "why", -1, &batch);
          EXPECT_EQ(ledger_->Find(key)->state(), v1::QUEUED);
          EXPECT_EQ(ledger_->Find(key)->attempt(), attempt);  // what the old attempt brings now is stale
        }
        break;
      default:
        if (row != nullptr && IsOpen(row->state()) && random_() % 8 == 0) {
          if (random_() % 2 == 0)
            ledger_->Cancel(key, &batch);
          else
            ledger_->Fail(key, "why", &batch);
        } else if (row != nullptr && row->state() == v1::SAMPLE_FAILED &&
                   !store_.Get(Table::kSamples, Ledger::ArchivedRowKey("job", key, row->attempt())).ok()) {
          const int64_t prompt = prompt_++;
          ledger_->Reissue(key, prompt, &batch);
          EXPECT_EQ(ledger_->Find(key)->state(), v1::QUEUED);
          EXPECT_EQ(ledger_->Find(key)->prompt_index(), prompt);
        }
        break;
    }
    EXPECT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    EXPECT_TRUE(Balanced(ledger_->counts())) << ledger_->counts().ShortDebugString();
  }

  // The process dies; a new one reads the rows.
  void Crash() {
    auto restored = std::make_unique<Ledger>("job");
    EXPECT_TRUE(store_
                    .Scan(Table::kSamples, Ledger::Prefix("job"),
                          [&](absl::string_view key, absl::string_view value) {
                            v1::SampleRow row;
                            row.ParseFromArray(value.data(), static_cast<int>(value.size()));
                            restored->Restore(row, key.size() > Ledger::RowKey("job", {0, 0, 0}).size(), true);
                            return true;
                          })
                    .ok());
    EXPECT_EQ(restored->counts().SerializeAsString(), ledger_->counts().SerializeAsString());
    EXPECT_EQ(restored->queued(), ledger_->queued());
    EXPECT_EQ(restored->leased(), ledger_->leased());
    EXPECT_EQ(restored->generated(), ledger_->generated());
    ledger_ = std::move(restored);
  }
  void Check() { EXPECT_EQ(Recount(store_).SerializeAsString(), ledger_->counts().SerializeAsString()); }

 private:
  static v1::PayloadRef Payload() {
    v1::PayloadRef ref;
    ref.set_segment(1);
    return ref;
  }
  SampleKey Any() {
    return {next_step_ == 1 ? 1 : 1 + static_cast<int64_t>(random_() % static_cast<uint64_t>(next_step_ - 1)),
            static_cast<int32_t>(random_() % 3), 0};
  }

  std::mt19937_64 random_;
  EdgeMemoryStore store_;
  std::unique_ptr<Ledger> ledger_;
  int64_t next_step_ = 1, prompt_ = 0;
};

TEST(LedgerTest, TheEquationHoldsUnderRandomHistoriesAndCrashes) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    RandomHistory history(seed);
    for (int i = 0; i < 1500; ++i) {
      history.Step();
      if (i % 300 == 299) history.Crash();
    }
    history.Check();
    if (testing::Test::HasFailure()) FAIL() << "seed " << seed;
  }
}

TEST(LedgerTest, AStepIsScoredWhenAllOfItIs) {
  Ledger ledger("job");
  WriteBatch batch;
  EXPECT_FALSE(ledger.StepScored(1));
  for (int i = 0; i < 2; ++i) {
    ledger.Issue({1, i, 0}, i, &batch);
    ledger.Lease({1, i, 0}, "w", &batch);
    ledger.Generated({1, i, 0}, {}, "", {}, &batch);
  }
  ledger.Scored({1, 0, 0}, {}, &batch);
  EXPECT_FALSE(ledger.StepScored(1));
  ledger.Scored({1, 1, 0}, {}, &batch);
  EXPECT_TRUE(ledger.StepScored(1));
  EXPECT_EQ(ledger.Step(1).size(), 2u);
}

TEST(LedgerTest, AStepEndsShortWhenWhatIsLeftOfItFailed) {
  Ledger ledger("job");
  WriteBatch batch;
  EXPECT_FALSE(ledger.StepEndedShort(1));
  for (int i = 0; i < 2; ++i) {
    ledger.Issue({1, i, 0}, i, &batch);
    ledger.Lease({1, i, 0}, "w", &batch);
  }
  ledger.Fail({1, 0, 0}, "too long", &batch);
  EXPECT_FALSE(ledger.StepEndedShort(1));
  ledger.Generated({1, 1, 0}, {}, "", {}, &batch);
  EXPECT_FALSE(ledger.StepEndedShort(1));
  ledger.Scored({1, 1, 0}, {}, &batch);
  EXPECT_TRUE(ledger.StepEndedShort(1));
  EXPECT_FALSE(ledger.StepScored(1));
  ledger.Reissue({1, 0, 0}, 7, &batch);
  EXPECT_FALSE(ledger.StepEndedShort(1));
  EXPECT_EQ(ledger.Find({1, 0, 0})->prompt_index(), 7);
  EXPECT_EQ(ledger.Lease({1, 0, 0}, "w", &batch), 2);
  ledger.Generated({1, 0, 0}, {}, "", {}, &batch);
  ledger.Scored({1, 0, 0}, {}, &batch);
  EXPECT_TRUE(ledger.StepScored(1));
  EXPECT_FALSE(ledger.StepEndedShort(1)) << "the failed one is superseded";
  EXPECT_EQ(ledger.counts().issued(), 3);
  EXPECT_EQ(ledger.counts().failed(), 1);
}

TEST(LedgerTest, WhatIsSettledNeedNotBeReadAgainUnlessARollbackGoesBehindIt) {
  EdgeMemoryStore store;
  Ledger ledger("job");
  for (int64_t step = 1; step <= 6; ++step) {
    WriteBatch batch;
    for (int i = 0; i < 3; ++i) {
      const SampleKey key{step, i, 0};
      ledger.Issue(key, i, &batch);
      ledger.Lease(key, "w", &batch);
      ledger.Generated(key, {}, "", {}, &batch);
      if (i == 0 && step == 2) {
        ledger.Replace(key, v1::STALE, "why", -1, &batch);
        ledger.Lease(key, "w", &batch);
        ledger.Generated(key, {}, "", {}, &batch);
      }
      ledger.Scored(key, {}, &batch);
      ledger.Assign(key, &batch);
      if (step <= 5) ledger.Train(key, &batch);
    }
    ledger.Settle(step - 2, &batch);
    ASSERT_TRUE(store.CommitAndWait(std::move(batch)).ok());
  }
  EXPECT_EQ(ledger.settled_through(), 4);
  WriteBatch refused;
  ledger.Settle(6, &refused);
  EXPECT_EQ(ledger.settled_through(), 5) << "a step with open samples is never settled";
  ASSERT_TRUE(store.CommitAndWait(std::move(refused)).ok());

  // A restart reads the base and the rows after it.
  v1::LedgerBase base;
  ASSERT_TRUE(base.ParseFromString(*store.Get(Table::kMeta, Ledger::BaseKey("job"))));
  Ledger restored("job");
  restored.RestoreBase(base);
  std::vector<v1::SampleRow> rows;
  ASSERT_TRUE(store
                  .Scan(Table::kSamples, Ledger::Prefix("job"),
                        [&](absl::string_view key, absl::string_view value) {
                          rows.emplace_back().ParseFromArray(value.data(), static_cast<int>(value.size()));
                          if (rows.back().id().step() > base.through_step())
                            restored.Restore(rows.back(), key.size() > Ledger::RowKey("job", {0, 0, 0}).size(), true);
                          return true;
                        })
                  .ok());
  EXPECT_EQ(restored.counts().SerializeAsString(), ledger.counts().SerializeAsString());
  EXPECT_EQ(restored.counts().SerializeAsString(), Recount(store).SerializeAsString());

  // Back to step 2: its samples count again one by one.
  WriteBatch batch;
  for (const v1::SampleRow& row : rows) {
    if (row.id().step() > 2 && row.state() == v1::TRAINED) restored.Readmit(row);
  }
  restored.Unsettle(2, rows, &batch);
  for (int64_t step = 3; step <= 5; ++step) {
    for (int i = 0; i < 3; ++i) restored.Untrain({step, i, 0}, &batch);
  }
  ASSERT_TRUE(store.CommitAndWait(std::move(batch)).ok());
  EXPECT_EQ(restored.settled_through(), 2);
  EXPECT_TRUE(Balanced(restored.counts()));
  EXPECT_EQ(restored.counts().trained(), 6);
  EXPECT_EQ(restored.counts().assigned(), 12);
  EXPECT_EQ(restored.counts().SerializeAsString(), Recount(store).SerializeAsString());
}

TEST(LedgerDeathTest, AnImpossibleTransitionEndsTheProcess) {
  Ledger ledger("job");
  WriteBatch batch;
  ledger.Issue({1, 0, 0}, 0, &batch);
  EXPECT_DEATH(ledger.Train({1, 0, 0}, &batch), "cannot go from QUEUED to TRAINED");
  EXPECT_DEATH(ledger.Issue({1, 0, 0}, 0, &batch), "issued twice");
}

}  // namespace
}  // namespace rlhf::coordinator
