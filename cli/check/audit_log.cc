#include "cli/check/audit_log.h"

#include "absl/strings/str_cat.h"
#include "cli/connection.h"
#include "client/cpp/audit_check.h"
#include "common/status_util.h"

namespace rlhf::cli {
namespace {

constexpr int kPageSize = 1000;

}  // namespace

absl::StatusOr<std::vector<v1::AuditHead>> ReadAuditHeads(v1::OversightService::Stub& stub) {
  std::vector<v1::AuditHead> heads;
  v1::ListAuditHeadsRequest request;
  request.mutable_page()->set_page_size(kPageSize);
  do {
    const auto context = CallContext(absl::Minutes(5));
    v1::ListAuditHeadsResponse page;
    RLHF_RETURN_IF_ERROR(FromGrpc(stub.ListAuditHeads(context.get(), request, &page)));
    heads.insert(heads.end(), page.heads().begin(), page.heads().end());
    request.mutable_page()->set_page_token(page.next_page_token());
  } while (!request.page().page_token().empty());
  return heads;
}

absl::StatusOr<std::vector<v1::AuditRecord>> ReadAuditRecords(v1::OversightService::Stub& stub) {
  std::vector<v1::AuditRecord> records;
  v1::ListAuditRequest request;
  request.mutable_page()->set_page_size(kPageSize);
  do {
    const auto context = CallContext(absl::Minutes(5));
    v1::ListAuditResponse page;
    RLHF_RETURN_IF_ERROR(FromGrpc(stub.ListAudit(context.get(), request, &page)));
    records.insert(records.end(), page.records().begin(), page.records().end());
    request.mutable_page()->set_page_token(page.next_page_token());
  } while (!request.page().page_token().empty());
  return records;
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
