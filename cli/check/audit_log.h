// The audit log as the coordinator hands it out, verified on the caller's side. Blocks; any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"

namespace rlhf::cli {

// All of them, page by page. Read heads before records: one that is signed meanwhile would seem to have lost its tail.
absl::StatusOr<std::vector<v1::AuditHead>> ReadAuditHeads(v1::OversightService::Stub& stub);
absl::StatusOr<std::vector<v1::AuditRecord>> ReadAuditRecords(v1::OversightService::Stub& stub);

struct AuditVerdict {
  uint64_t records = 0, heads = 0;  // that hold, before the problem
  std::string problem;              // for people, names the record; empty when all holds
};
// Recomputes the chain of all records, then looks for every signed head in it.
AuditVerdict VerifyAuditLog(const std::vector<v1::AuditRecord>& records, const std::vector<v1::AuditHead>& heads,
                            const std::string& public_key_pem);

}  // namespace rlhf::cli
