#include "coordinator/auth/denials.h"

#include <algorithm>
#include <map>
#include <utility>

#include <prometheus/counter.h>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kBetweenHandshakeRecords = absl::Minutes(1);
constexpr size_t kMostSubjects = 1000;  // lately refused; more count as one

}  // namespace

void Denials::Note(const std::string& subject, const std::string& method, const std::string& reason) {
  if (metrics_ != nullptr) {
    metrics_
        ->Counter("rlhf_auth_failures_total", "Calls refused for want of identity or permission.", {{"reason", reason}})
        .Increment();
  }
  int64_t left_out = 0;
  {
    absl::MutexLock lock(&mu_);
    Bucket& bucket = BucketOf(subject, loop_->clock().Now());
    if (bucket.tokens < 1) {
      ++bucket.left_out;
      return;
    }
    bucket.tokens -= 1;
    left_out = std::exchange(bucket.left_out, 0);
  }
  loop_->Post([this, subject, method, reason, left_out] {
    std::map<std::string, std::string> details = {{"reason", reason}};
    if (left_out > 0) details["left_out_before"] = absl::StrCat(left_out);
    Record(subject.empty() ? "unknown" : subject, "call.denied", method.substr(0, 200), details);
  });
}

Denials::Bucket& Denials::BucketOf(const std::string& subject, absl::Duration now) {
  const auto refilled = [&](const Bucket& bucket) {
    return std::min(burst_, bucket.tokens + absl::ToDoubleSeconds(now - bucket.refilled));
  };
  if (buckets_.size() >= kMostSubjects && buckets_.count(subject) == 0) {
    std::erase_if(buckets_,
                  [&](const auto& entry) { return entry.second.left_out == 0 && refilled(entry.second) >= burst_; });
  }
  const bool one_more = buckets_.size() < kMostSubjects || buckets_.count(subject) > 0;
  const auto [it, added] = buckets_.try_emplace(one_more ? subject : "");
  it->second.tokens = added ? burst_ : refilled(it->second);
  it->second.refilled = now;
  return it->second;
}

void Denials::NoteHandshake(const std::string& reason) {
  {
    absl::MutexLock lock(&mu_);
    Handshakes& refused = handshakes_[reason];
    ++refused.unrecorded;
    if (std::exchange(refused.due, true)) return;
  }
  loop_->Post([this, reason] { RecordHandshakes(reason); });
}

void Denials::RecordHandshakes(const std::string& reason) {
  int64_t count = 0;
  {
    absl::MutexLock lock(&mu_);
    Handshakes& refused = handshakes_[reason];
    count = std::exchange(refused.unrecorded, 0);
    refused.due = count > 0;
  }
  if (count == 0) return;
  Record("unknown", "handshake.denied", "fleet", {{"reason", reason}, {"count", absl::StrCat(count)}});
  loop_->PostAfter(kBetweenHandshakeRecords, [this, reason] { RecordHandshakes(reason); });
}

void Denials::Record(const std::string& subject, const std::string& action, const std::string& object,
                     const std::map<std::string, std::string>& details) {
  WriteBatch batch;
  oversight_->Audit(subject, action, object, "denied", details, &batch);
  store_->Commit(std::move(batch), [](absl::Status status) {
    if (!status.ok()) spdlog::warn("a refusal could not be audited: {}", std::string(status.message()));
  });
}

}  // namespace rlhf::coordinator
