#include "coordinator/web/sessions.h"

#include <algorithm>

#include "common/status_util.h"
#include "coordinator/auth/secrets.h"

namespace rlhf::coordinator {

absl::StatusOr<WebSession> WebSessions::Begin(const std::string& token) {
  WebSession session;
  RLHF_ASSIGN_OR_RETURN(session.id, RandomHex(32));
  RLHF_ASSIGN_OR_RETURN(session.csrf, RandomHex(32));
  session.token = token;
  const absl::Duration now = clock_->Now();
  absl::MutexLock lock(&mu_);
  if (entries_.size() >= kMost) {
    entries_.erase(std::min_element(entries_.begin(), entries_.end(),
                                    [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
  }
  entries_[session.id] = {session, now, now};
  return session;
}

std::optional<WebSession> WebSessions::Find(const std::string& id) {
  const absl::Duration now = clock_->Now();
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(id);
  if (it == entries_.end()) return std::nullopt;
  if (now - it->second.began > kLongest || now - it->second.used > kIdle) {
    entries_.erase(it);
    return std::nullopt;
  }
  it->second.used = now;
  return it->second.session;
}

void WebSessions::End(const std::string& id) {
  absl::MutexLock lock(&mu_);
  entries_.erase(id);
}

}  // namespace rlhf::coordinator
