#include "coordinator/auth/denials.h"

#include <algorithm>
#include <map>
#include <utility>

#include <prometheus/counter.h>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace rlhf::coordinator {

void Denials::Note(const std::string& subject, const std::string& method, const std::string& reason) {
  if (metrics_ != nullptr) {
    metrics_
        ->Counter("rlhf_auth_failures_total", "Calls refused for want of identity or permission.", {{"reason", reason}})
        .Increment();
  }
  int64_t left_out = 0;
  {
    absl::MutexLock lock(&mu_);
    const absl::Duration now = loop_->clock().Now();
    tokens_ = std::min(burst_, tokens_ + absl::ToDoubleSeconds(now - refilled_));
    refilled_ = now;
    if (tokens_ < 1) {
      ++left_out_;
      return;
    }
    tokens_ -= 1;
    left_out = std::exchange(left_out_, 0);
  }
  loop_->Post([this, subject, method, reason, left_out] {
    std::map<std::string, std::string> details = {{"reason", reason}};
    if (left_out > 0) details["left_out_before"] = absl::StrCat(left_out);
    WriteBatch batch;
    oversight_->Audit(subject.empty() ? "unknown" : subject, "call.denied", method.substr(0, 200), "denied", details,
                      &batch);
    store_->Commit(std::move(batch), [](absl::Status status) {
      if (!status.ok()) spdlog::warn("a refused call could not be audited: {}", std::string(status.message()));
    });
  });
}

}  // namespace rlhf::coordinator
