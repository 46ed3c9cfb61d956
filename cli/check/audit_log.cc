#include "cli/check/audit_log.h"

#include <algorithm>
#include <cstdio>
#include <fstream>

#include <google/protobuf/util/json_util.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/pages.h"
#include "client/cpp/audit_check.h"

namespace rlhf::cli {
namespace {

constexpr int kPageSize = 1000;
constexpr absl::Duration kPageTime = absl::Minutes(5);

// What a coordinator logs of each head, whatever a log's format has around it.
bool HeadOfLogLine(const std::string& line, v1::AuditHead* head) {
  const size_t at = line.find("audit head: ");
  if (at == std::string::npos) return false;
  unsigned long long records = 0;
  long long seconds = 0;
  char sha256[65] = "", signature[128] = "";
  if (std::sscanf(line.c_str() + at,
                  "audit head: %llu records, sha256 %64[0-9a-f], at %lld, signature %127[A-Za-z0-9+/=]", &records,
                  sha256, &seconds, signature) != 4)
    return false;
  head->set_sequence(records);
  head->set_sha256(sha256);
  head->mutable_at()->set_seconds(seconds);
  head->set_signature(signature);
  return true;
}

constexpr char kStopWriters[] =
    "Until it is explained trust no later record: stop who else may write to the store, and keep it as it is, with the "
    "coordinator's logs";

std::string AboutRecord(uint64_t bad) {
  return absl::StrCat("somebody wrote to the store past the coordinator, or its files are damaged. ",
                      bad > 1
                          ? absl::StrCat("The records before ", bad, " hold: look at records ", bad - 1, " and ", bad)
                          : "None holds: look at record 1",
                      " in `rlhfctl audit export` (one a line, in order), and compare with an earlier export or a "
                      "backup, whose records "
                      "up to there have to be the same, byte for byte. ",
                      kStopWriters);
}

std::string AboutHeads() {
  return absl::StrCat(
      "an older backup may have been restored: then a record `service.restore` says so. Without one, records or heads "
      "were removed or rewritten: compare with an earlier `rlhfctl audit export`, with heads that were kept elsewhere "
      "(`--heads`), or with the lines \"audit head\" of the coordinator's log. ",
      kStopWriters);
}

std::string AboutKeys() {
  return "give the key's public half, audit.key.pub beside the coordinator's --audit-key-file, again for each key that "
         "signed before it: the record `audit.key` names a new one. If the key is right the heads are not the "
         "coordinator's: compare with heads that were kept elsewhere (`--heads`)";
}

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

absl::StatusOr<std::vector<v1::AuditHead>> ReadKeptHeads(const std::string& file) {
  std::ifstream in(file);
  if (!in) return absl::NotFoundError(absl::StrCat("cannot read ", file));
  std::vector<v1::AuditHead> heads;
  std::string line;
  while (std::getline(in, line)) {
    v1::AuditHead head;
    if (HeadOfLogLine(line, &head) ||
        (google::protobuf::util::JsonStringToMessage(line, &head).ok() && head.sequence() > 0))
      heads.push_back(head);
  }
  if (!heads.empty()) return heads;
  return absl::InvalidArgumentError(absl::StrCat(
      file,
      ": expected heads as `rlhfctl audit heads` prints them, or a coordinator's log with lines \"audit head\", "
      "found none"));
}

std::string AuditVerdict::Text() const {
  std::string text = absl::StrCat(records, " records hold, ", heads, " signed heads agree");
  if (heads > 0) absl::StrAppend(&text, " (of records ", first_signed, " to ", newest_signed, ")");
  if (kept > 0) absl::StrAppend(&text, ", ", kept, " kept ones too");
  if (others > 0 && heads > 0) {
    absl::StrAppend(&text, "; the signatures of ", others, " heads by other keys (", absl::StrJoin(other_keys, ", "),
                    " by their own word) were not checked");
  }
  return text;
}

AuditVerdict VerifyAuditLog(const std::vector<v1::AuditRecord>& records, const std::vector<v1::AuditHead>& heads,
                            const std::vector<std::string>& public_keys_pem, const std::vector<v1::AuditHead>& kept) {
  AuditVerdict verdict;
  client::AuditChainCheck chain;
  for (const v1::AuditRecord& record : records) {
    const std::string problem = chain.Next(record);
    verdict.records = chain.records();
    if (problem.empty()) continue;
    verdict.problem = absl::StrCat("the audit log was tampered with at record ", chain.first_bad(), ": ", problem);
    verdict.first_bad = chain.first_bad();
    verdict.what_to_do = AboutRecord(verdict.first_bad);
    return verdict;
  }
  absl::StatusOr<client::AuditHeadsCheck> check = client::AuditHeadsCheck::With(public_keys_pem);
  if (!check.ok()) {
    verdict.problem = absl::StrCat("the public key: ", check.status().message());
    verdict.what_to_do = "give the file that lies beside the coordinator's --audit-key-file, with .pub at its end";
    return verdict;
  }
  const auto found = [&](const std::string& problem, const v1::AuditHead& head) {
    verdict.problem = problem;
    if (problem.empty()) return;
    const bool disagrees = !chain.CheckHead(head).empty();
    if (disagrees) verdict.first_bad = std::min<uint64_t>(head.sequence(), chain.first_bad());
    verdict.what_to_do = disagrees ? AboutHeads() : AboutKeys();
  };
  for (size_t i = 0; i < heads.size() && verdict.problem.empty(); ++i) found(check->Next(heads[i], chain), heads[i]);
  if (verdict.problem.empty()) found(check->End(), v1::AuditHead());
  for (size_t i = 0; i < kept.size() && verdict.problem.empty(); ++i) {
    found(check->Kept(kept[i], chain), kept[i]);
    verdict.kept += verdict.problem.empty() ? 1 : 0;
  }
  verdict.heads = check->agree();
  verdict.first_signed = check->first().sequence();
  verdict.newest_signed = check->newest().sequence();
  verdict.others = check->others();
  verdict.other_keys = check->other_keys();
  return verdict;
}

}  // namespace rlhf::cli
