// The audit log, checked by whoever reads it: nothing here trusts the coordinator. Pure functions.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::client {

// SHA-256 of a record with its own digest empty, in deterministic serialisation.
std::string AuditDigest(v1::AuditRecord record);
// What a signed head is a signature of.
std::string AuditHeadText(const v1::AuditHead& head);

// Follows the chain record by record.
class AuditChainCheck {
 public:
  // Empty while everything holds; else what is wrong with the record that was expected next. After a problem nothing
  // more is looked at.
  std::string Next(const v1::AuditRecord& record);
  // Whether a head, whoever signed it, agrees with the record of its number, which has been followed. Empty when it
  // does.
  std::string CheckHead(const v1::AuditHead& head) const;
  uint64_t records() const { return records_; }
  uint64_t first_bad() const { return records_ + 1; }

 private:
  uint64_t records_ = 0;  // that hold
  std::vector<std::string> digests_;
};

// The heads of a chain that was followed to its end. What a head says of its key is not signed: only a signature that
// one of the keys verifies counts. A coordinator with a key signs its log from the first record on, so that there is
// always a head by its key; one that was removed with the tail behind it leaves the next older one, which only a head
// that is kept elsewhere tells.
class AuditHeadsCheck {
 public:
  // InvalidArgument for a text that is no public key. Without keys no signature is looked at.
  static absl::StatusOr<AuditHeadsCheck> With(const std::vector<std::string>& public_keys_pem);
  // Oldest first. Empty when the head agrees with the chain and is by one of the keys, or says that it is another's.
  std::string Next(const v1::AuditHead& head, const AuditChainCheck& chain);
  // After the last one. Not empty when there are keys and the newest head is by none of them.
  std::string End() const;
  // A head that was kept elsewhere: has to be by one of the keys, and to agree.
  std::string Kept(const v1::AuditHead& head, const AuditChainCheck& chain) const;

  uint64_t agree() const { return agree_; }  // heads by the keys
  const v1::AuditHead& first() const { return first_; }
  const v1::AuditHead& newest() const { return newest_; }                  // by the keys
  uint64_t others() const { return others_; }                              // heads by no key that is known
  const std::set<std::string>& other_keys() const { return other_keys_; }  // SHA-256, as those say themselves

 private:
  bool ByOneOfTheKeys(const v1::AuditHead& head) const;

  std::map<std::string, std::string> keys_;  // SHA-256 to PEM
  uint64_t agree_ = 0, others_ = 0;
  std::set<std::string> other_keys_;
  v1::AuditHead first_, newest_, newest_other_;
};

}  // namespace rlhf::client
