#include "client/cpp/audit_check.h"

#include <openssl/sha.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/canonical_bytes.h"
#include "common/signature.h"

namespace rlhf::client {

std::string AuditDigest(v1::AuditRecord record) {
  record.clear_sha256();
  const std::string bytes = CanonicalBytes(record);
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
}

std::string AuditHeadText(const v1::AuditHead& head) {
  return absl::StrCat("rlhf-audit-head\n", head.sequence(), "\n", head.sha256(), "\n", head.at().seconds());
}

std::string AuditChainCheck::Next(const v1::AuditRecord& record) {
  const std::string& previous = digests_.empty() ? "" : digests_.back();
  if (record.sequence() != first_bad())
    return absl::StrCat("expected record ", first_bad(), ", found ", record.sequence());
  if (record.previous_sha256() != previous) return "it does not follow from the record before";
  if (record.sha256() != AuditDigest(record)) return "its content was changed";
  digests_.push_back(record.sha256());
  ++records_;
  return "";
}

std::string AuditChainCheck::CheckHead(const v1::AuditHead& head, const std::string& public_key_pem) const {
  if (const absl::Status status = VerifySignature(public_key_pem, AuditHeadText(head), head.signature()); !status.ok())
    return absl::StrCat("the signed head of record ", head.sequence(), ": ", std::string(status.message()));
  if (head.sequence() > records_)
    return absl::StrCat("a head of ", head.sequence(), " records was signed, ", records_,
                        " are there: the tail was cut");
  if (head.sequence() > 0 && digests_[head.sequence() - 1] != head.sha256())
    return absl::StrCat("record ", head.sequence(), " is not the one whose head was signed: the chain was rewritten");
  return "";
}

}  // namespace rlhf::client
