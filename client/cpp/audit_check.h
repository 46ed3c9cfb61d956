// The audit log, checked by whoever reads it: nothing here trusts the coordinator. Pure functions.
#pragma once

#include <string>
#include <vector>

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
  // Whether a head agrees with the record of its number, which has been followed. Empty when it does.
  std::string CheckHead(const v1::AuditHead& head, const std::string& public_key_pem) const;
  uint64_t records() const { return records_; }
  uint64_t first_bad() const { return records_ + 1; }

 private:
  uint64_t records_ = 0;  // that hold
  std::vector<std::string> digests_;
};

}  // namespace rlhf::client
