#include "client/cpp/audit_check.h"

#include <algorithm>

#include <openssl/sha.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/canonical_bytes.h"
#include "common/signature.h"
#include "common/status_util.h"

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

std::string AuditChainCheck::CheckHead(const v1::AuditHead& head) const {
  if (head.sequence() > records_)
    return absl::StrCat("a head of ", head.sequence(), " records was signed, ", records_,
                        " are there: the tail was cut");
  if (head.sequence() > 0 && digests_[head.sequence() - 1] != head.sha256())
    return absl::StrCat("record ", head.sequence(), " is not the one whose head was signed: the chain was rewritten");
  return "";
}

absl::StatusOr<AuditHeadsCheck> AuditHeadsCheck::With(const std::vector<std::string>& public_keys_pem) {
  AuditHeadsCheck check;
  for (const std::string& pem : public_keys_pem) {
    RLHF_ASSIGN_OR_RETURN(const std::string sha256, PublicKeySha256(pem));
    check.keys_[sha256] = pem;
  }
  return check;
}

bool AuditHeadsCheck::ByOneOfTheKeys(const v1::AuditHead& head) const {
  const std::string text = AuditHeadText(head);
  const auto by = [&](const std::string& pem) { return VerifySignature(pem, text, head.signature()).ok(); };
  const auto named = keys_.find(head.key_sha256());
  if (named != keys_.end() && by(named->second)) return true;
  return std::any_of(keys_.begin(), keys_.end(), [&](const auto& key) { return by(key.second); });
}

std::string AuditHeadsCheck::Next(const v1::AuditHead& head, const AuditChainCheck& chain) {
  if (ByOneOfTheKeys(head)) {
    if (++agree_ == 1) first_ = head;
    if (head.sequence() >= newest_.sequence()) newest_ = head;
  } else if (keys_.count(head.key_sha256()) > 0) {
    return absl::StrCat("the signed head of record ", head.sequence(), " is not this key's, or was changed");
  } else {
    ++others_;
    other_keys_.insert(head.key_sha256());
    if (head.sequence() >= newest_other_.sequence()) newest_other_ = head;
  }
  return chain.CheckHead(head);
}

std::string AuditHeadsCheck::End() const {
  if (keys_.empty()) return "";
  if (agree_ == 0 && others_ == 0) {
    return "expected a head that the key signed, found none: a coordinator with an audit key signs its log from the "
           "first record on, so its heads were removed, or it has no --audit-key-file";
  }
  if (agree_ == 0 || newest_other_.sequence() > newest_.sequence()) {
    return absl::StrCat("the newest head, of record ", newest_other_.sequence(),
                        ", is by a key that is not known here (", newest_other_.key_sha256(),
                        " by its own word): expected one by the key; give that public key too if the coordinator's "
                        "was changed, else the head is forged");
  }
  return "";
}

std::string AuditHeadsCheck::Kept(const v1::AuditHead& head, const AuditChainCheck& chain) const {
  if (!ByOneOfTheKeys(head))
    return absl::StrCat("the kept head of record ", head.sequence(), " is by none of the keys, or was changed");
  return chain.CheckHead(head);
}

}  // namespace rlhf::client
