// What projects and their submitters may use at once. Loop thread only.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "coordinator/scheduling/fair_share.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/admin_service.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

class Quotas {
 public:
  // Reads the rows.
  absl::Status Recover(StateStore* store);
  // Without bounds and of weight 1 when none is set. `submitter` empty: the project as a whole.
  v1::Quota Of(const std::string& project, const std::string& submitter) const;
  // InvalidArgument, naming the field, for a quota that cannot be.
  static absl::Status Check(const v1::Quota& quota);
  // Takes effect at once; the caller commits the batch. A quota without any bound and of weight 1 is removed.
  void Set(const v1::Quota& quota, WriteBatch* batch);
  // By project, then submitter; `project` "*": all.
  v1::ListQuotasResponse List(const std::string& project, const std::string& page_token, int page_size) const;

 private:
  std::map<std::string, v1::Quota> quotas_;  // by row key
};

// A ShareRuleOf: one of a quota's bounds, and its weight. Null quotas: no bound, and weight 1.
struct QuotaRule {
  const Quotas* quotas;
  int32_t (v1::Quota::*limit)() const;
  ShareRule operator()(const std::string& project, const std::string& submitter) const;
};

}  // namespace rlhf::coordinator
