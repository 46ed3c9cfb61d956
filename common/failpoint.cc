#include "common/failpoint.h"

#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/log.h"

namespace rlhf {
namespace {

struct Action {
  enum class Kind { kKill, kSleep, kError } kind = Kind::kError;
  absl::Duration sleep;
  int64_t only_pass = 0;  // 0: every pass
  int64_t passes = 0;
};
using Actions = std::map<std::string, Action, std::less<>>;

absl::StatusOr<Actions> Parse(absl::string_view specification) {
  Actions actions;
  for (absl::string_view entry : absl::StrSplit(specification, ',', absl::SkipWhitespace())) {
    entry = absl::StripAsciiWhitespace(entry);
    const auto bad = [entry] {
      return absl::InvalidArgumentError(
          absl::StrCat("failpoint \"", entry, "\": expected NAME=kill|sleep:MS|error, optionally followed by @PASS"));
    };
    const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(entry, absl::MaxSplits('=', 1));
    std::pair<absl::string_view, absl::string_view> what = absl::StrSplit(parts.second, absl::MaxSplits('@', 1));
    if (parts.first.empty() || parts.second.empty()) return bad();
    Action action;
    if (!what.second.empty() && (!absl::SimpleAtoi(what.second, &action.only_pass) || action.only_pass < 1)) {
      return bad();
    }
    int64_t milliseconds = 0;
    if (what.first == "kill") {
      action.kind = Action::Kind::kKill;
    } else if (what.first == "error") {
      action.kind = Action::Kind::kError;
    } else if (absl::ConsumePrefix(&what.first, "sleep:") && absl::SimpleAtoi(what.first, &milliseconds)) {
      action.kind = Action::Kind::kSleep;
      action.sleep = absl::Milliseconds(milliseconds);
    } else {
      return bad();
    }
    actions[std::string(parts.first)] = action;
  }
  return actions;
}

struct Armed {
  Armed() {
    const char* environment = std::getenv("RLHF_FAILPOINTS");
    absl::StatusOr<Actions> parsed = Parse(environment == nullptr ? "" : environment);
    if (!parsed.ok()) {
      spdlog::critical("RLHF_FAILPOINTS: {}", std::string(parsed.status().message()));
      std::abort();
    }
    absl::MutexLock lock(&mu);
    actions = *std::move(parsed);
  }
  absl::Mutex mu;
  Actions actions ABSL_GUARDED_BY(mu);
};

Armed& TheArmed() {
  static Armed* const armed = new Armed;
  return *armed;
}

}  // namespace

absl::Status ArmFailpoints(const std::string& specification) {
  absl::StatusOr<Actions> parsed = Parse(specification);
  if (!parsed.ok()) return parsed.status();
  Armed& armed = TheArmed();
  absl::MutexLock lock(&armed.mu);
  armed.actions = *std::move(parsed);
  return absl::OkStatus();
}

absl::Status HitFailpoint(const char* name) {
  Action action;
  {
    Armed& armed = TheArmed();
    absl::MutexLock lock(&armed.mu);
    const auto it = armed.actions.find(name);
    if (it == armed.actions.end()) return absl::OkStatus();
    ++it->second.passes;
    if (it->second.only_pass != 0 && it->second.only_pass != it->second.passes) return absl::OkStatus();
    action = it->second;
  }
  spdlog::warn("failpoint {} fires", name);
  switch (action.kind) {
    case Action::Kind::kKill:
      kill(getpid(), SIGKILL);
      break;
    case Action::Kind::kSleep:
      absl::SleepFor(action.sleep);
      break;
    case Action::Kind::kError:
      return absl::UnavailableError(absl::StrCat("failpoint ", name));
  }
  return absl::OkStatus();
}

}  // namespace rlhf
