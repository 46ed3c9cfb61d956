#include "cli/check/audit_log.h"

#include "absl/strings/str_cat.h"
#include "cli/pages.h"
#include "client/cpp/audit_check.h"

namespace rlhf::cli {
namespace {

constexpr int kPageSize = 1000;
constexpr absl::Duration kPageTime = absl::Minutes(5);

}  // namespace

absl::StatusOr<std::vector<v1::AuditHead>> ReadAuditHeads(v1::OversightService::Stub& stub) {
  v1::ListAuditHeadsRequest request;
  request.mutable_page()->set_page_size(kPageSize);
  return AllPages<v1::AuditHead>(
      stub, &v1::OversightService::Stub::ListAuditHeads, request,
      [](const v1::ListAuditHeadsResponse& page) -> const auto& { return page.heads(); }, kPageTime);
}

absl::StatusOr<std::vector<v1::AuditRecord>> ReadAuditRecords(v1::OversightService::Stub& stub) {
  v1::ListAuditRequest request;
  request.mutable_page()->set_page_size(kPageSize);
  return AllPages<v1::AuditRecord>(
      stub, &v1::OversightService::Stub::ListAudit, request,
      [](const v1::ListAuditResponse& page) -> const auto& { return page.records(); }, kPageTime);
}

AuditVerdict VerifyAuditLog(const std::vector<v1::AuditRecord>& records, const std::vector<v1::AuditHead>& heads,
                            const std::string& public_key_pem) {
  AuditVerdict verdict;
  client::AuditChainCheck check;
  for (const v1::AuditRecord& record : records) {
    const std::string problem = check.Next(record);
    verdict.records = check.records();
    if (problem.empty()) continue;
    verdict.problem = absl::StrCat("the audit log was tampered with at record ", check.first_bad(), ": ", problem);
    return verdict;
  }
  for (const v1::AuditHead& head : heads) {
    verdict.problem = check.CheckHead(head, public_key_pem);
    if (!verdict.problem.empty()) return verdict;
    ++verdict.heads;
  }
  return verdict;
}

}  // namespace rlhf::cli
