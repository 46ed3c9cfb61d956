// Browser sessions: who signed in with which token. Kept in memory only, so a restart signs everybody out. Thread-safe.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace rlhf::coordinator {

struct WebSession {
  std::string id;     // the cookie's value; 256 random bits
  std::string csrf;   // what every writing request must repeat in the header X-CSRF-Token
  std::string token;  // the bearer token it stands for; checked anew on every request, so revoking it ends the session
};

class WebSessions {
 public:
  static constexpr absl::Duration kLongest = absl::Hours(12);  // from the sign-in on
  static constexpr absl::Duration kIdle = absl::Hours(1);      // without a request
  static constexpr size_t kMost = 1000;                        // one more replaces the one used least recently

  explicit WebSessions(const Clock* clock) : clock_(clock) {}

  // Internal when the system has no random bytes.
  absl::StatusOr<WebSession> Begin(const std::string& token);
  // Nothing when it is unknown or over.
  std::optional<WebSession> Find(const std::string& id);
  void End(const std::string& id);

 private:
  struct Entry {
    WebSession session;
    absl::Duration began, used;  // monotonic
  };
  const Clock* const clock_;
  absl::Mutex mu_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rlhf::coordinator
