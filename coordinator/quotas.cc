#include "coordinator/quotas.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace rlhf::coordinator {
namespace {

std::string KeyOfQuota(const std::string& project, const std::string& submitter) {
  return absl::StrCat(project, "/", submitter);
}

}  // namespace

absl::Status Quotas::Recover(StateStore* store) {
  return store->Scan(Table::kQuotas, "", [&](absl::string_view key, absl::string_view value) {
    quotas_[std::string(key)].ParseFromArray(value.data(), static_cast<int>(value.size()));
    return true;
  });
}

v1::Quota Quotas::Of(const std::string& project, const std::string& submitter) const {
  if (const auto it = quotas_.find(KeyOfQuota(project, submitter)); it != quotas_.end()) return it->second;
  v1::Quota quota;
  quota.set_project(project);
  quota.set_submitter(submitter);
  quota.set_weight(1);
  return quota;
}

absl::Status Quotas::Check(const v1::Quota& quota) {
  const auto bad = [](absl::string_view field, const auto& found, absl::string_view expected) {
    return absl::InvalidArgumentError(absl::StrCat("quota.", field, ": expected ", expected, ", found ", found));
  };
  if (quota.project().empty() || quota.project() == "*") return bad("project", "\"" + quota.project() + "\"", "a name");
  for (const auto& [field, value] :
       {std::pair("max_jobs", quota.max_jobs()), std::pair("max_learners", quota.max_learners()),
        std::pair("max_rollout_workers", quota.max_rollout_workers()),
        std::pair("max_score_requests", quota.max_score_requests())}) {
    if (value < 0) return bad(field, value, "0 (no bound) or more");
  }
  if (quota.has_weight() && !(quota.weight() > 0 && quota.weight() <= 1000))
    return bad("weight", quota.weight(), "more than 0, at most 1000");
  return absl::OkStatus();
}

void Quotas::Set(const v1::Quota& quota, WriteBatch* batch) {
  v1::Quota row = quota;
  if (!row.has_weight()) row.set_weight(1);
  const std::string key = KeyOfQuota(row.project(), row.submitter());
  const bool bounded =
      row.max_jobs() > 0 || row.max_learners() > 0 || row.max_rollout_workers() > 0 || row.max_score_requests() > 0;
  if (!bounded && row.weight() == 1) {
    quotas_.erase(key);
    batch->Erase(Table::kQuotas, key);
    return;
  }
  batch->Put(Table::kQuotas, key, row.SerializeAsString());
  quotas_[key] = std::move(row);
}

v1::ListQuotasResponse Quotas::List(const std::string& project, const std::string& page_token, int page_size) const {
  v1::ListQuotasResponse response;
  std::string last;
  for (auto it = quotas_.upper_bound(page_token); it != quotas_.end(); ++it) {
    if (project != "*" && it->second.project() != project) continue;
    if (response.quotas_size() == page_size) {
      response.set_next_page_token(last);
      break;
    }
    last = it->first;
    *response.add_quotas() = it->second;
  }
  return response;
}

ShareRule QuotaRule::operator()(const std::string& project, const std::string& submitter) const {
  if (quotas == nullptr) return ShareRule();
  const v1::Quota quota = quotas->Of(project, submitter);
  return ShareRule{(quota.*limit)(), quota.weight()};
}

}  // namespace rlhf::coordinator
