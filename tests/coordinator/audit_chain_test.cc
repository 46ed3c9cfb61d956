// The audit log is verified while it grows.
#include <atomic>
#include <thread>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/signature.h"
#include "coordinator/oversight/audit_chain.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

class AuditChainTest : public testing::Test {
 protected:
  void SetUp() override {
    auto signer = Signer::Open(dir_.File("audit.key"));
    ASSERT_TRUE(signer.ok()) << signer.status();
    chain_.SetSigner(*std::move(signer));
    ASSERT_TRUE(chain_.Recover().ok());
  }
  void Add(int i) {
    WriteBatch batch;
    chain_.Append("ada", "look", absl::StrCat(i), "done", {}, &batch);
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  }

  ScratchDir dir_;
  EdgeMemoryStore store_;
  AuditChain chain_{Clock::Real(), &store_};
};

TEST_F(AuditChainTest, VerifyingOnAnotherThreadHoldsWhileRecordsAndHeadsAreAdded) {
  std::atomic<bool> done{false};
  std::atomic<int> verified{0};
  std::thread other([&] {
    while (!done) {
      const v1::VerifyAuditResponse found = chain_.Verify();
      EXPECT_TRUE(found.intact()) << found.problem() << " at " << found.first_bad_sequence();
      if (!found.intact()) return;
      ++verified;
    }
  });
  // Each record is signed: a head that is newer than what was read of the records is always near. A burst begins where
  // a verification ends, and is over before the log has outgrown the next one.
  for (int burst = 0; burst < 25 && !HasFailure(); ++burst) {
    const int before = verified;
    for (int i = 0; i < 20; ++i) {
      Add(i);
      chain_.SignHead();
    }
    while (verified == before && !HasFailure()) std::this_thread::yield();
  }
  done = true;
  other.join();
  const v1::VerifyAuditResponse all = chain_.Verify();
  EXPECT_TRUE(all.intact());
  EXPECT_EQ(all.records(), 501u) << "the first one names the key";
  EXPECT_EQ(all.head().sequence(), all.records());
}

TEST_F(AuditChainTest, BatchesThatAreDroppedOrOvertakeOneAnotherLeaveTheChainWhole) {
  const auto expect_intact = [&](uint64_t records) {
    const v1::VerifyAuditResponse found = chain_.Verify();
    EXPECT_TRUE(found.intact()) << found.problem() << " at " << found.first_bad_sequence();
    EXPECT_EQ(found.records(), records + 1) << "the first one names the key";
  };
  Add(1);
  {
    WriteBatch dropped;
    chain_.Append("ada", "look", "never", "done", {}, &dropped);
  }
  Add(2);
  expect_intact(2);

  WriteBatch first, second;
  chain_.Append("ada", "look", "a", "done", {}, &first);
  chain_.Append("ada", "look", "b", "done", {}, &second);
  chain_.Append("ada", "look", "c", "done", {}, &first);
  // A head is signed of what is committed, never of what may not be.
  chain_.SignHead();
  expect_intact(2);
  ASSERT_TRUE(store_.CommitAndWait(std::move(second)).ok());
  ASSERT_TRUE(store_.CommitAndWait(std::move(first)).ok());
  chain_.SignHead();
  expect_intact(5);
  std::vector<std::string> objects;
  const auto all = chain_.All();
  ASSERT_TRUE(all.ok()) << all.status();
  for (const v1::AuditRecord& record : *all) {
    if (record.action() == "look") objects.push_back(record.object());
  }
  EXPECT_EQ(objects, std::vector<std::string>({"1", "2", "b", "a", "c"}));

  // And goes on from there after a restart.
  AuditChain restarted(Clock::Real(), &store_);
  ASSERT_TRUE(restarted.Recover().ok());
  WriteBatch batch;
  restarted.Append("ada", "look", "d", "done", {}, &batch);
  ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  expect_intact(6);
}

TEST_F(AuditChainTest, NobodyWaitsForIt) {
  for (int i = 0; i < 10; ++i) Add(i);
  const v1::VerifyAuditResponse found = chain_.Verify([] { return true; });
  EXPECT_FALSE(found.intact());
  EXPECT_EQ(found.records(), 0u);
  EXPECT_TRUE(chain_.Verify([] { return false; }).intact());
}

}  // namespace
}  // namespace rlhf::coordinator
