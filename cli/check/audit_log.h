// The audit log as the coordinator hands it out, verified on the caller's side. Blocks; any thread.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"

namespace rlhf::cli {

// All of them, page by page. Read heads before records: one that is signed meanwhile would seem to have lost its tail.
absl::StatusOr<std::vector<v1::AuditHead>> ReadAuditHeads(v1::OversightService::Stub& stub);
absl::StatusOr<std::vector<v1::AuditRecord>> ReadAuditRecords(v1::OversightService::Stub& stub);

// Heads that were kept elsewhere, of a file: JSON lines as `rlhfctl audit heads` prints them, and lines of a
// coordinator's log, where others are passed over. InvalidArgument when there is none.
absl::StatusOr<std::vector<v1::AuditHead>> ReadKeptHeads(const std::string& file);

struct AuditVerdict {
  uint64_t records = 0, heads = 0, kept = 0;     // that hold, before the problem; heads by the keys
  uint64_t others = 0;                           // heads by no key that was given
  std::set<std::string> other_keys;              // as those say themselves
  uint64_t first_signed = 0, newest_signed = 0;  // records of the first and the newest head
  std::string problem;                           // for people, names the record; empty when all holds
  std::string what_to_do;                        // about the problem: what may have made it, and the next step
  uint64_t first_bad = 0;                        // the first record that does not hold; 0: none, or not told by one
  std::string Text() const;                      // what was found, for people
};
// Recomputes the chain of all records, then looks for every head in it. With keys the newest head has to be by one of
// them, and each kept one too.
AuditVerdict VerifyAuditLog(const std::vector<v1::AuditRecord>& records, const std::vector<v1::AuditHead>& heads,
                            const std::vector<std::string>& public_keys_pem,
                            const std::vector<v1::AuditHead>& kept = {});

}  // namespace rlhf::cli
