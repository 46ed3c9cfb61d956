// What a check of a job finds: rows that contradict themselves or their payloads, and counts that contradict the
// ledger's, of steps that go on, that are settled, and of a job that has ended.
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/sampling_faults_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class SamplingChecks : public SamplingFaults {
 protected:
  // So many samples of the step, generated (and with nobody to score them, scored).
  void Make(int64_t step, int samples) {
    Issue(step, samples);
    for (int made = 0; made < samples;) {
      const auto leases = Lease(worker_, samples);
      ASSERT_FALSE(leases.empty());
      for (const v1::LeaseProgress& lease : leases) EXPECT_TRUE(Submit(worker_, lease).accepted());
      made += static_cast<int>(leases.size());
    }
  }
  void Commit(const std::function<void(WriteBatch*)>& fn) {
    WriteBatch batch;
    fn(&batch);
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    loop_.Run();
  }
  // The row of a step's sample, otherwise than it was written.
  void Change(int64_t step, int ordinal, const std::function<void(v1::SampleRow*)>& change) {
    const std::string key = Ledger::RowKey("job", {step, ordinal, 0});
    v1::SampleRow row;
    const auto stored = store_.Get(Table::kSamples, key);
    ASSERT_TRUE(stored.ok() && row.ParseFromString(*stored));
    change(&row);
    Commit([&](WriteBatch* batch) { batch->Put(Table::kSamples, key, row.SerializeAsString()); });
  }
  void Erase(int64_t step, int ordinal) {
    Commit([&](WriteBatch* batch) { batch->Erase(Table::kSamples, Ledger::RowKey("job", {step, ordinal, 0})); });
  }
  const std::string worker_ = Register("w");
};

TEST_F(SamplingChecks, RowsThatContradictThemselvesOrTheirPayloadsAreNamed) {
  Make(1, 4);
  ExpectAllAccountedFor();
  Change(1, 0, [](v1::SampleRow* row) { row->set_digest(std::string(64, '0')); });
  Change(1, 1, [](v1::SampleRow* row) { row->clear_payload(); });
  Change(1, 2, [](v1::SampleRow* row) { row->mutable_payload()->set_segment(999); });
  EXPECT_THAT(Check(), ElementsAre("sample 1/0/0: its payload's digest differs from its row's",
                                   "sample 1/1/0: SCORED without a payload", HasSubstr("sample 1/2/0: ")));
}

TEST_F(SamplingChecks, ASampleThatWasTrainedInAnotherStepIsNamed) {
  Make(1, 2);
  Change(1, 1, [](v1::SampleRow* row) {
    row->set_state(v1::TRAINED);
    row->set_assigned_step(2);
  });
  EXPECT_THAT(Check(), ElementsAre("sample 1/1/0: trained in step 2", HasSubstr("step 1: rows say {issued: 2")));
}

TEST_F(SamplingChecks, PayloadsThatWereFreedAreNotMissed) {
  Make(1, 3);
  for (const int ordinal : {0, 2}) {
    Change(1, ordinal, [](v1::SampleRow* row) {
      row->clear_payload();
      row->set_freed(true);
    });
  }
  const auto found = Findings();
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_THAT(found->violations, IsEmpty());
  EXPECT_THAT(found->notes, ElementsAre(HasSubstr("the payloads of 2 samples were not read")));
}

TEST_F(SamplingChecks, SettledStepsAreCountedTogether) {
  Make(1, 3);
  Commit([&](WriteBatch* batch) {
    ASSERT_TRUE(sampling_->AssignStep("job", 1, /*replay=*/false, batch).ok());
    sampling_->MarkTrained("job", 1, batch);
    sampling_->Settle("job", 1, batch);
  });
  ExpectAllAccountedFor();
  Erase(1, 2);
  EXPECT_THAT(Check(), ElementsAre(AllOf(HasSubstr("settled steps: rows say {issued: 2"), HasSubstr("issued: 3"))));
  // A rollback while the rows are read leaves nothing to compare them with.
  const auto rolled_back =
      Findings([&] { Commit([&](WriteBatch* batch) { ASSERT_TRUE(sampling_->Rollback("job", 0, batch).ok()); }); });
  ASSERT_TRUE(rolled_back.ok()) << rolled_back.status();
  EXPECT_THAT(rolled_back->violations, IsEmpty());
  EXPECT_THAT(rolled_back->notes, ElementsAre(HasSubstr("the counts of steps up to 1 were not compared")));
}

TEST_F(SamplingChecks, AJobThatHasEndedIsComparedAsAWhole) {
  Make(1, 2);
  Issue(2, 2);
  Commit([&](WriteBatch* batch) {
    sampling_->CancelOpen("job", batch);
    sampling_->Close("job", batch);
  });
  sampling_->RemoveJob("job");
  ExpectAllAccountedFor();
  Erase(2, 0);
  EXPECT_THAT(Check(), ElementsAre(AllOf(HasSubstr("rows say {issued: 3"), HasSubstr("the ledger {issued: 4"))));
}

}  // namespace
}  // namespace rlhf::coordinator
