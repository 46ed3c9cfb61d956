#include "coordinator/oversight/audit_chain.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cpp/audit_check.h"
#include "common/log.h"
#include "common/signature.h"
#include "common/status_util.h"
#include "coordinator/page_limit.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

constexpr int kDefaultAuditPage = 100;
constexpr uint64_t kLookedAt = 1000;  // records between two looks at whether somebody waits
constexpr char kHeadPrefix[] = "audit_head/";

std::string RecordKey(uint64_t sequence) {
  return KeyOf("", {sequence});
}

std::string HeadKey(uint64_t sequence) {
  return absl::StrFormat("%s%020d", kHeadPrefix, sequence);
}

absl::StatusOr<uint64_t> PageStart(const v1::PageRequest& page, uint64_t from) {
  if (!page.page_token().empty() && !absl::SimpleAtoi(page.page_token(), &from))
    return absl::InvalidArgumentError("page_token: expected the one of the previous answer");
  return from;
}

// The log is the second place: who rewrites the store does not reach it. Of a head that is durable, as its records then
// are: one that never was would accuse the log that goes on without it.
void LogHead(const v1::AuditHead& head) {
  spdlog::info("audit head: {} records, sha256 {}, at {}, signature {}", head.sequence(), head.sha256(),
               head.at().seconds(), head.signature());
}

}  // namespace

absl::Status AuditChain::Recover() {
  const absl::StatusOr<std::string> last = store_->LastKey(Table::kAudit, "");
  if (last.ok()) {
    RLHF_ASSIGN_OR_RETURN(const std::string bytes, store_->Get(Table::kAudit, *last));
    v1::AuditRecord record;
    record.ParseFromString(bytes);
    sequence_ = record.sequence();
    last_sha256_ = record.sha256();
  } else if (!absl::IsNotFound(last.status())) {
    return last.status();
  }
  v1::AuditHead newest;
  const absl::StatusOr<std::string> head = store_->LastKey(Table::kMeta, kHeadPrefix);
  if (head.ok()) {
    RLHF_ASSIGN_OR_RETURN(const std::string bytes, store_->Get(Table::kMeta, *head));
    newest.ParseFromString(bytes);
  } else if (!absl::IsNotFound(head.status())) {
    return head.status();
  }
  return signer_ == nullptr ? absl::OkStatus() : BeginSigning(newest);
}

absl::Status AuditChain::BeginSigning(const v1::AuditHead& newest) {
  if (VerifySignature(signer_->public_key_pem(), client::AuditHeadText(newest), newest.signature()).ok()) {
    signed_ = newest.sequence();
    if (sequence_ < signed_) {
      spdlog::error("the audit log has {} records, and a head of {} was signed: its tail was cut", sequence_, signed_);
    }
  } else {
    WriteBatch record;
    Append("coordinator", "audit.key", signer_->key_sha256(), "done",
           {{"previous", newest.signature().empty() ? "none" : newest.key_sha256()}}, &record);
    RLHF_RETURN_IF_ERROR(store_->CommitAndWait(std::move(record)));
  }
  WriteBatch batch;
  const v1::AuditHead head = PutHead(&batch);
  if (batch.empty()) return absl::OkStatus();
  RLHF_RETURN_IF_ERROR(store_->CommitAndWait(std::move(batch)));
  LogHead(head);
  return absl::OkStatus();
}

void AuditChain::Append(const std::string& subject, const std::string& action, const std::string& object,
                        const std::string& decision, const std::map<std::string, std::string>& details,
                        WriteBatch* batch) {
  v1::AuditRecord record;
  *record.mutable_at() = ToTimestamp(clock_->WallNow());
  record.set_subject(subject);
  record.set_action(action);
  record.set_object(object);
  record.set_decision(decision);
  record.mutable_details()->insert(details.begin(), details.end());
  batch->Put(Table::kAudit, "", record.SerializeAsString());
  batch->sealer = this;
}

void AuditChain::Seal(std::vector<WriteBatch::Op>* ops) {
  for (WriteBatch::Op& op : *ops) {
    if (op.table != Table::kAudit || op.erase || !op.key.empty()) continue;
    v1::AuditRecord record;
    record.ParseFromString(op.value);
    record.set_sequence(++sequence_);
    record.set_previous_sha256(last_sha256_);
    record.set_sha256(client::AuditDigest(record));
    last_sha256_ = record.sha256();
    op.key = RecordKey(record.sequence());
    op.value = record.SerializeAsString();
  }
}

void AuditChain::SignHead() {
  if (signer_ == nullptr || sequence_ == signed_) return;
  WriteBatch batch;
  const v1::AuditHead head = PutHead(&batch);
  if (batch.empty()) return;
  store_->Commit(std::move(batch), [head](const absl::Status& status) {
    if (status.ok()) LogHead(head);
  });
}

v1::AuditHead AuditChain::PutHead(WriteBatch* batch) {
  v1::AuditHead head;
  signed_ = sequence_;
  // One that is there says what the log was: in a log whose tail was cut its number comes again.
  if (sequence_ == 0 || !absl::IsNotFound(store_->Get(Table::kMeta, HeadKey(sequence_)).status())) return head;
  head.set_sequence(sequence_);
  head.set_sha256(last_sha256_);
  *head.mutable_at() = ToTimestamp(clock_->WallNow());
  head.set_key_sha256(signer_->key_sha256());
  head.set_signature(signer_->Sign(client::AuditHeadText(head)));
  batch->Put(Table::kMeta, HeadKey(head.sequence()), head.SerializeAsString());
  return head;
}

absl::StatusOr<v1::ListAuditResponse> AuditChain::List(const v1::ListAuditRequest& request) const {
  PageLimit page(request.page().page_size() == 0 ? kDefaultAuditPage : request.page().page_size());
  RLHF_ASSIGN_OR_RETURN(const uint64_t from, PageStart(request.page(), request.from_sequence()));
  v1::ListAuditResponse response;
  RLHF_RETURN_IF_ERROR(store_->ScanAfter(
      Table::kAudit, "", from == 0 ? "" : RecordKey(from - 1), [&](absl::string_view, absl::string_view value) {
        if (!page.Take(value.size())) {
          response.set_next_page_token(absl::StrCat(response.records().rbegin()->sequence() + 1));
          return false;
        }
        response.add_records()->ParseFromArray(value.data(), static_cast<int>(value.size()));
        return true;
      }));
  return response;
}

absl::StatusOr<v1::ListAuditHeadsResponse> AuditChain::ListHeads(const v1::ListAuditHeadsRequest& request) const {
  PageLimit page(request.page().page_size() == 0 ? kDefaultAuditPage : request.page().page_size());
  RLHF_ASSIGN_OR_RETURN(const uint64_t from, PageStart(request.page(), 0));
  v1::ListAuditHeadsResponse response;
  if (signer_ != nullptr) response.set_public_key_pem(signer_->public_key_pem());
  RLHF_RETURN_IF_ERROR(store_->ScanAfter(
      Table::kMeta, kHeadPrefix, from == 0 ? "" : HeadKey(from), [&](absl::string_view, absl::string_view value) {
        if (!page.Take(value.size())) {
          response.set_next_page_token(absl::StrCat(response.heads().rbegin()->sequence()));
          return false;
        }
        response.add_heads()->ParseFromArray(value.data(), static_cast<int>(value.size()));
        return true;
      }));
  return response;
}

absl::StatusOr<std::vector<v1::AuditRecord>> AuditChain::All(const std::function<bool(const v1::AuditRecord&)>& wanted,
                                                             const std::function<bool()>& gone) const {
  std::vector<v1::AuditRecord> records;
  int64_t read = 0;
  bool stopped = false;
  RLHF_RETURN_IF_ERROR(store_->Scan(Table::kAudit, "", [&](absl::string_view, absl::string_view value) {
    stopped = gone && read++ % kLookedAt == 0 && gone();
    if (stopped) return false;
    v1::AuditRecord record;
    record.ParseFromArray(value.data(), static_cast<int>(value.size()));
    if (!wanted || wanted(record)) records.push_back(std::move(record));
    return true;
  }));
  if (stopped) return absl::CancelledError("nobody waits for the audit log any more");
  return records;
}

v1::VerifyAuditResponse AuditChain::Verify(const std::function<bool()>& gone) const {
  v1::VerifyAuditResponse response;
  client::AuditChainCheck check;
  const auto found = [&](const std::string& problem, uint64_t sequence) {
    response.set_problem(problem);
    response.set_first_bad_sequence(sequence);
  };
  std::vector<std::string> keys;
  if (signer_ != nullptr) keys.push_back(signer_->public_key_pem());
  absl::StatusOr<client::AuditHeadsCheck> heads = client::AuditHeadsCheck::With(keys);
  // A head that is signed from now on may be of records that this does not come to.
  const absl::StatusOr<std::string> newest = store_->LastKey(Table::kMeta, kHeadPrefix);
  absl::Status status = absl::IsNotFound(newest.status()) ? absl::OkStatus() : newest.status();
  status.Update(heads.status());
  const auto follow = [&](absl::string_view, absl::string_view value) {
    if (gone && check.records() % kLookedAt == 0 && gone()) {
      found("given up: nobody waits for the answer", 0);
      return false;
    }
    v1::AuditRecord record;
    const bool parsed = record.ParseFromArray(value.data(), static_cast<int>(value.size()));
    const std::string problem = parsed ? check.Next(record) : "the record cannot be read";
    if (!problem.empty()) found(problem, check.first_bad());
    return problem.empty();
  };
  if (status.ok()) status = store_->Scan(Table::kAudit, "", follow);
  if (status.ok() && response.problem().empty()) {
    status = store_->Scan(Table::kMeta, kHeadPrefix, [&](absl::string_view key, absl::string_view value) {
      if (!newest.ok() || key > *newest) return false;
      v1::AuditHead head;
      head.ParseFromArray(value.data(), static_cast<int>(value.size()));
      const std::string problem = heads->Next(head, check);
      if (!problem.empty()) found(problem, std::min<uint64_t>(head.sequence(), check.first_bad()));
      return problem.empty();
    });
    if (const std::string problem = heads->End(); status.ok() && response.problem().empty() && !problem.empty())
      found(problem, check.first_bad());
    if (heads->agree() > 0) *response.mutable_head() = heads->newest();
    if (heads->others() > 0 && signer_ != nullptr) {
      spdlog::warn(
          "{} heads of the audit log are by other keys ({}): `rlhfctl audit verify` with their public keys "
          "checks them",
          heads->others(), absl::StrJoin(heads->other_keys(), ", "));
    }
  }
  if (!status.ok()) response.set_problem(std::string(status.message()));
  response.set_records(check.records());
  response.set_intact(response.problem().empty());
  return response;
}

}  // namespace rlhf::coordinator
