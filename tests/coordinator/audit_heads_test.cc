// Heads of the audit log that somebody with the store's rights removed, renamed or cut back to; and a key that is
// another one than before.
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include "absl/strings/str_format.h"
#include "common/clock.h"
#include "common/signature.h"
#include "coordinator/oversight/audit_chain.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

class AuditHeadsTest : public testing::Test {
 protected:
  void SetUp() override { Start("audit.key"); }
  // A coordinator begins; without a key: ''.
  void Start(const std::string& key) {
    chain_ = std::make_unique<AuditChain>(Clock::Real(), &store_);
    if (!key.empty()) {
      auto signer = Signer::Open(dir_.File(key));
      ASSERT_TRUE(signer.ok()) << signer.status();
      chain_->SetSigner(*std::move(signer));
    }
    ASSERT_TRUE(chain_->Recover().ok());
  }
  void Add(int records) {
    for (int i = 0; i < records; ++i) {
      WriteBatch batch;
      chain_->Append("ada", "look", "at it", "done", {}, &batch);
      ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    }
  }
  std::vector<v1::AuditHead> Heads() {
    const auto heads = chain_->ListHeads({});
    EXPECT_TRUE(heads.ok()) << heads.status();
    return {heads->heads().begin(), heads->heads().end()};
  }
  static std::string KeyOfHead(uint64_t sequence) { return absl::StrFormat("audit_head/%020d", sequence); }
  void Put(const v1::AuditHead& head) {
    WriteBatch batch;
    batch.Put(Table::kMeta, KeyOfHead(head.sequence()), head.SerializeAsString());
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  }
  // Removes records and heads that are newer than so many records.
  void Cut(uint64_t records, uint64_t heads) {
    WriteBatch batch;
    for (uint64_t sequence = records + 1; sequence < 100; ++sequence) batch.Erase(Table::kAudit, KeyOf("", {sequence}));
    for (uint64_t sequence = heads + 1; sequence < 100; ++sequence) batch.Erase(Table::kMeta, KeyOfHead(sequence));
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  }
  std::string Problem() { return chain_->Verify().problem(); }

  ScratchDir dir_;
  EdgeMemoryStore store_;
  std::unique_ptr<AuditChain> chain_;
};

TEST_F(AuditHeadsTest, ALogWithAKeyIsSignedFromItsFirstRecordOn) {
  const auto records = chain_->All();
  ASSERT_TRUE(records.ok());
  ASSERT_EQ(records->size(), 1u);
  EXPECT_EQ((*records)[0].action(), "audit.key");
  EXPECT_EQ((*records)[0].object(), chain_->signer()->key_sha256());
  EXPECT_EQ((*records)[0].details().at("previous"), "none");
  ASSERT_EQ(Heads().size(), 1u);
  EXPECT_EQ(Heads()[0].sequence(), 1u);
  Add(2);
  Start("audit.key");
  EXPECT_EQ(chain_->All()->size(), 3u) << "the key is the same";
  EXPECT_EQ(Heads().back().sequence(), 3u) << "what it found is signed at once";
  EXPECT_EQ(Problem(), "");
}

TEST_F(AuditHeadsTest, NoHeadAtAllIsAProblemAndIsOnRecordAfterAStart) {
  Add(3);
  chain_->SignHead();
  Cut(2, 0);
  EXPECT_THAT(Problem(), HasSubstr("found none"));
  Start("audit.key");
  EXPECT_EQ(Problem(), "");
  const auto records = chain_->All();
  ASSERT_EQ(records->size(), 3u);
  EXPECT_EQ(records->back().action(), "audit.key") << "in the midst of a log";
  EXPECT_EQ(Heads().front().sequence(), 3u);
}

TEST_F(AuditHeadsTest, AHeadThatNamesAnotherKeyIsLookedAtAllTheSame) {
  Add(3);
  chain_->SignHead();
  v1::AuditHead renamed = Heads().back();
  renamed.set_key_sha256("ab");
  Put(renamed);
  EXPECT_EQ(Problem(), "") << "its signature is the key's";
  Cut(3, 4);
  EXPECT_THAT(Problem(), HasSubstr("the tail was cut"));
  renamed.set_sequence(3);
  renamed.set_sha256((*chain_->All())[2].sha256());
  Cut(3, 1);
  Put(renamed);
  EXPECT_THAT(Problem(), HasSubstr("is by a key that is not known here (ab")) << "forged, and newer than the key's";
}

TEST_F(AuditHeadsTest, ALogCutBackToAHeadLooksWholeAndWhatWasSignedIsNotSignedOver) {
  Add(3);
  chain_->SignHead();
  Cut(1, 1);
  EXPECT_EQ(Problem(), "") << "only a head that was kept elsewhere tells";
  // Another time the head is left behind. The log grows over it.
  Start("audit.key");
  Add(3);
  chain_->SignHead();
  Cut(2, 4);
  Start("audit.key");
  EXPECT_THAT(Problem(), HasSubstr("the tail was cut"));
  Add(2);
  chain_->SignHead();
  EXPECT_THAT(Problem(), HasSubstr("the chain was rewritten"));
}

TEST_F(AuditHeadsTest, AnotherKeyIsOnRecordWithTheOneBefore) {
  Add(1);
  chain_->SignHead();
  const std::string before = chain_->signer()->key_sha256();
  Start("another.key");
  const v1::AuditRecord record = chain_->All()->back();
  EXPECT_EQ(record.action(), "audit.key");
  EXPECT_EQ(record.object(), chain_->signer()->key_sha256());
  EXPECT_EQ(record.details().at("previous"), before);
  const v1::VerifyAuditResponse found = chain_->Verify();
  EXPECT_TRUE(found.intact()) << found.problem();
  EXPECT_EQ(found.head().key_sha256(), record.object());
  Start("");
  EXPECT_EQ(Problem(), "") << "without a key no signature is looked at";
  Cut(2, 4);
  EXPECT_THAT(Problem(), HasSubstr("the tail was cut")) << "but what was signed has to be there";
}

// The log is where an auditor keeps heads: one of records that a full disk never took would accuse the log that went
// on.
TEST_F(AuditHeadsTest, OnlyAHeadThatIsDurableIsLogged) {
  std::ostringstream log;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  Add(1);
  chain_->SignHead();
  EXPECT_THAT(log.str(), HasSubstr("audit head: 2 records"));
  store_.FailWith(absl::UnavailableError("the disk is full"));
  WriteBatch batch;
  chain_->Append("ada", "look", "at it", "done", {}, &batch);
  EXPECT_FALSE(store_.CommitAndWait(std::move(batch)).ok());
  chain_->SignHead();
  spdlog::set_default_logger(before);
  EXPECT_THAT(log.str(), testing::Not(HasSubstr("audit head: 3 records")));
}

}  // namespace
}  // namespace rlhf::coordinator
