// What a reader of the audit log finds without trusting the coordinator: heads that are missing, of other keys, or kept
// elsewhere.
#include "cli/check/audit_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "client/cpp/audit_check.h"
#include "common/durable_file.h"
#include "common/signature.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class AuditLogHeadsTest : public testing::Test {
 protected:
  void SetUp() override {
    for (int i = 1; i <= 4; ++i) {
      v1::AuditRecord record;
      record.set_sequence(static_cast<uint64_t>(i));
      record.set_action("job.submit");
      if (i > 1) record.set_previous_sha256(records_.back().sha256());
      record.set_sha256(client::AuditDigest(record));
      records_.push_back(record);
    }
    for (auto* signer : {&signer_, &other_}) {
      auto opened = Signer::Open(dir_.File(signer == &signer_ ? "key" : "other"));
      ASSERT_TRUE(opened.ok()) << opened.status();
      *signer = *std::move(opened);
    }
    key_ = {signer_->public_key_pem()};
  }
  v1::AuditHead Head(uint64_t sequence, const Signer& signer) const {
    v1::AuditHead head;
    head.set_sequence(sequence);
    head.set_sha256(records_[sequence - 1].sha256());
    head.mutable_at()->set_seconds(1'700'000'000 + static_cast<int64_t>(sequence));
    head.set_key_sha256(signer.key_sha256());
    head.set_signature(signer.Sign(client::AuditHeadText(head)));
    return head;
  }
  std::vector<v1::AuditRecord> First(size_t n) const {
    return {records_.begin(), records_.begin() + static_cast<std::ptrdiff_t>(n)};
  }
  std::string Problem(const std::vector<v1::AuditRecord>& records, const std::vector<v1::AuditHead>& heads,
                      const std::vector<v1::AuditHead>& kept = {}) const {
    return VerifyAuditLog(records, heads, key_, kept).problem;
  }

  ScratchDir dir_;
  std::vector<v1::AuditRecord> records_;
  std::unique_ptr<Signer> signer_, other_;
  std::vector<std::string> key_;
};

TEST_F(AuditLogHeadsTest, WithAKeyThereHasToBeAHead) {
  EXPECT_THAT(Problem(records_, {}), HasSubstr("found none"));
  EXPECT_THAT(Problem({}, {}), HasSubstr("found none"));
  EXPECT_EQ(VerifyAuditLog(records_, {}, {}).problem, "") << "nobody said that it is signed";
  EXPECT_EQ(VerifyAuditLog(records_, {Head(3, *signer_)}, {}).Text(), "4 records hold, 0 signed heads agree");
  EXPECT_THAT(VerifyAuditLog(records_, {}, {"no key"}).problem, HasSubstr("the public key: "));
  const AuditVerdict whole = VerifyAuditLog(records_, {Head(1, *signer_), Head(3, *signer_)}, key_);
  EXPECT_EQ(whole.problem, "");
  EXPECT_EQ(whole.Text(), "4 records hold, 2 signed heads agree (of records 1 to 3)");
}

TEST_F(AuditLogHeadsTest, WhatAHeadSaysOfItsKeyIsNotSignedAndDecidesNothing) {
  v1::AuditHead renamed = Head(4, *signer_);
  renamed.set_key_sha256("ab");
  EXPECT_EQ(Problem(records_, {renamed}), "");
  EXPECT_THAT(Problem(First(3), {renamed}), HasSubstr("the tail was cut"));
  v1::AuditHead forged = Head(4, *other_);
  forged.set_key_sha256(signer_->key_sha256());
  EXPECT_THAT(Problem(records_, {forged}), HasSubstr("the signed head of record 4"));
  // So that its content is not looked at.
  v1::AuditHead spoilt = renamed;
  spoilt.set_signature(signer_->Sign("something else"));
  EXPECT_THAT(Problem(records_, {Head(2, *signer_), spoilt}), HasSubstr("is by a key that is not known here (ab"));
}

TEST_F(AuditLogHeadsTest, HeadsOfOtherKeysAreNamedAndHaveToAgreeAndToBeOlder) {
  const v1::AuditHead before = Head(2, *other_);
  const AuditVerdict changed = VerifyAuditLog(records_, {before, Head(3, *signer_)}, key_);
  EXPECT_EQ(changed.problem, "");
  EXPECT_EQ(changed.heads, 1u);
  EXPECT_EQ(changed.others, 1u);
  EXPECT_THAT(changed.other_keys, ElementsAre(other_->key_sha256()));
  EXPECT_THAT(changed.Text(), HasSubstr(absl::StrCat("1 heads by other keys (", other_->key_sha256())));
  EXPECT_THAT(Problem(records_, {Head(3, *signer_), Head(4, *other_)}), HasSubstr("the newest head, of record 4"));
  EXPECT_THAT(Problem(records_, {before}), HasSubstr("the newest head, of record 2"));
  key_.push_back(other_->public_key_pem());
  EXPECT_EQ(VerifyAuditLog(records_, {before, Head(3, *signer_), Head(4, *other_)}, key_).heads, 3u);
  key_.pop_back();
  v1::AuditHead disagrees = before;
  disagrees.set_sha256(records_[2].sha256());
  EXPECT_THAT(Problem(records_, {disagrees, Head(3, *signer_)}), HasSubstr("record 2 is not the one"));
}

TEST_F(AuditLogHeadsTest, ALogThatWasCutBackToAnEarlierHeadIsToldByOneThatWasKept) {
  const v1::AuditHead early = Head(2, *signer_), kept = Head(4, *signer_);
  EXPECT_EQ(Problem(First(2), {early}), "") << "it looks like one that is two records long";
  EXPECT_THAT(Problem(First(2), {early}, {kept}), HasSubstr("the tail was cut"));
  const AuditVerdict whole = VerifyAuditLog(records_, {early}, key_, {early, kept});
  EXPECT_EQ(whole.problem, "");
  EXPECT_THAT(whole.Text(), HasSubstr("2 kept ones too"));
  EXPECT_THAT(Problem(records_, {early}, {Head(4, *other_)}), HasSubstr("the kept head of record 4"));
}

TEST_F(AuditLogHeadsTest, WhatIsWrongComesWithTheRecordAndWhatToDo) {
  std::vector<v1::AuditRecord> changed = records_;
  changed[2].set_action("job.delete");
  const AuditVerdict record = VerifyAuditLog(changed, {Head(4, *signer_)}, key_);
  EXPECT_EQ(record.first_bad, 3u);
  EXPECT_THAT(record.what_to_do, testing::AllOf(HasSubstr("The records before 3 hold"), HasSubstr("audit export"),
                                                HasSubstr("records 2 and 3"), HasSubstr("backup")));
  const AuditVerdict cut = VerifyAuditLog(First(3), {Head(4, *signer_)}, key_);
  EXPECT_EQ(cut.first_bad, 4u);
  EXPECT_THAT(cut.what_to_do, testing::AllOf(HasSubstr("service.restore"), HasSubstr("--heads")));
  const AuditVerdict kept = VerifyAuditLog(First(2), {Head(2, *signer_)}, key_, {Head(4, *signer_)});
  EXPECT_THAT(kept.what_to_do, HasSubstr("service.restore"));
  for (const AuditVerdict& key :
       {VerifyAuditLog(records_, {}, key_), VerifyAuditLog(records_, {Head(4, *other_)}, key_),
        VerifyAuditLog(records_, {Head(4, *signer_)}, key_, {Head(4, *other_)})}) {
    EXPECT_NE(key.problem, "");
    EXPECT_EQ(key.first_bad, 0u);
    EXPECT_THAT(key.what_to_do, HasSubstr("audit.key.pub"));
  }
  EXPECT_THAT(VerifyAuditLog(records_, {}, {"no key"}).what_to_do, HasSubstr(".pub"));
  EXPECT_EQ(VerifyAuditLog(records_, {Head(4, *signer_)}, key_).what_to_do, "");
}

TEST_F(AuditLogHeadsTest, KeysAreOfOneKindAndTheirPublicHalfLiesBesideThem) {
  EXPECT_EQ(*ReadFile(dir_.File("key.pub")), signer_->public_key_pem());
  // Of another curve.
  const std::string pub =
      "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAECBlJohGpkIzHI3N9BtTLVrQc8NF2\n"
      "+p/J9HZkASJwUU8rRlG3vzX76+VLDnalL10dTekijsq34bgZyLay+tH22A==\n-----END PUBLIC KEY-----\n";
  ASSERT_TRUE(
      WriteFileDurably(dir_.File("ec"),
                       "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgsJKpbrqnDoUAAb6B\n"
                       "QO1mnlcMH/cGS//X/GOYnXPt49ChRANCAAQIGUmiEamQjMcjc30G1MtWtBzw0Xb6\n"
                       "n8n0dmQBInBRTytGUbe/Nfvr5UsOdqUvXR1N6SKOyrfhuBnItrL60fbY\n-----END PRIVATE KEY-----\n")
          .ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Signer::Open(dir_.File("ec")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(VerifySignature(pub, "x", signer_->Sign("x"))));
  EXPECT_TRUE(absl::IsInvalidArgument(PublicKeySha256(pub).status()));
  EXPECT_TRUE(VerifySignature(key_[0], "x", signer_->Sign("x")).ok());
  for (const char* wrong : {"", "AAAA"}) EXPECT_FALSE(VerifySignature(key_[0], "x", wrong).ok()) << wrong;
}

TEST_F(AuditLogHeadsTest, HeadsAreReadFromWhatTheCoordinatorLoggedAndFromWhatWasPrinted) {
  const v1::AuditHead head = Head(4, *signer_);
  const std::string line = absl::StrCat("audit head: 4 records, sha256 ", head.sha256(), ", at ", head.at().seconds(),
                                        ", signature ", head.signature());
  ASSERT_TRUE(WriteFileDurably(
                  dir_.File("coordinator.log"),
                  absl::StrCat("{\"msg\":\"ready\"}\n{\"at\":\"now\",\"msg\":\"", line, "\"}\n[info] ", line, "\n"))
                  .ok());
  const auto logged = ReadKeptHeads(dir_.File("coordinator.log"));
  ASSERT_TRUE(logged.ok()) << logged.status();
  ASSERT_EQ(logged->size(), 2u);
  for (const v1::AuditHead& found : *logged) EXPECT_EQ(Problem(records_, {head}, {found}), "");
  ASSERT_TRUE(WriteFileDurably(dir_.File("heads"), absl::StrCat("{\"sequence\":\"4\",\"sha256\":\"", head.sha256(),
                                                                "\",\"at\":\"2023-11-14T22:13:24Z\",\"signature\":\"",
                                                                head.signature(), "\"}\n"))
                  .ok());
  const auto printed = ReadKeptHeads(dir_.File("heads"));
  ASSERT_TRUE(printed.ok()) << printed.status();
  EXPECT_EQ(Problem(records_, {head}, *printed), "");
  EXPECT_THAT(Problem(First(3), {Head(3, *signer_)}, *printed), HasSubstr("the tail was cut"));
  ASSERT_TRUE(WriteFileDurably(dir_.File("nothing"), "{\"msg\":\"ready\"}\n{}\n").ok());
  EXPECT_THAT(std::string(ReadKeptHeads(dir_.File("nothing")).status().message()), HasSubstr("found none"));
  EXPECT_TRUE(absl::IsNotFound(ReadKeptHeads(dir_.File("absent")).status()));
}

}  // namespace
}  // namespace rlhf::cli
