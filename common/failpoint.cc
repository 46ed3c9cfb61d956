#include "common/failpoint.h"

#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/durable_file.h"
#include "common/log.h"

namespace rlhf {
namespace {

struct Action {
  enum class Kind { kKill, kStop, kSleep, kError } kind = Kind::kError;
  absl::Duration sleep;
  int64_t pass = 1;
  bool every_time = false;
};

absl::StatusOr<Action> Parse(absl::string_view text) {
  const auto bad = [text] {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", text,
        "\": expected kill|stop|sleep:MS|error, optionally with * for every time, optionally followed by @PASS"));
  };
  std::pair<absl::string_view, absl::string_view> what =
      absl::StrSplit(absl::StripAsciiWhitespace(text), absl::MaxSplits('@', 1));
  Action action;
  action.every_time = absl::ConsumeSuffix(&what.first, "*");
  if (!what.second.empty() && (!absl::SimpleAtoi(what.second, &action.pass) || action.pass < 1)) return bad();
  int64_t milliseconds = 0;
  if (what.first == "kill") {
    action.kind = Action::Kind::kKill;
  } else if (what.first == "stop") {
    action.kind = Action::Kind::kStop;
  } else if (what.first == "error") {
    action.kind = Action::Kind::kError;
  } else if (absl::ConsumePrefix(&what.first, "sleep:") && absl::SimpleAtoi(what.first, &milliseconds)) {
    action.kind = Action::Kind::kSleep;
    action.sleep = absl::Milliseconds(milliseconds);
  } else {
    return bad();
  }
  return action;
}

std::string InstanceOfThisProcess() {
  std::ifstream file("/proc/self/cmdline");
  const std::string line((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::vector<std::string> words = absl::StrSplit(line, '\0');
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i] == "--instance") return words[i + 1];
  }
  return "coordinator";
}

class Armed {
 public:
  Armed() {
    const char* dir = std::getenv("RLHF_FAILPOINTS_DIR");
    Use(dir == nullptr ? "" : dir, InstanceOfThisProcess());
  }
  void Use(const std::string& dir, const std::string& instance) {
    absl::MutexLock lock(&mu_);
    dir_ = dir;
    instance_ = instance;
    passes_.clear();
  }

  // What fires now, if anything.
  absl::StatusOr<bool> Take(const char* name, Action* action) {
    absl::MutexLock lock(&mu_);
    if (dir_.empty()) return false;
    for (const std::string& who : {instance_, std::string("any")}) {
      const std::string file = absl::StrCat(dir_, "/", who, "/", absl::StrReplaceAll(name, {{"/", "."}}));
      const absl::StatusOr<std::string> text = ReadFile(file);
      if (!text.ok()) {
        passes_.erase(file);
        continue;
      }
      absl::StatusOr<Action> parsed = Parse(*text);
      if (!parsed.ok()) return absl::InvalidArgumentError(absl::StrCat(file, ": ", parsed.status().message()));
      if (++passes_[file] < parsed->pass) continue;
      // The one whose rename succeeds is the one that fires.
      if (!parsed->every_time && rename(file.c_str(), (file + ".fired").c_str()) != 0) continue;
      *action = *parsed;
      return true;
    }
    return false;
  }

 private:
  absl::Mutex mu_;
  std::string dir_ ABSL_GUARDED_BY(mu_), instance_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, int64_t> passes_ ABSL_GUARDED_BY(mu_);
};

Armed& TheArmed() {
  static Armed* const armed = new Armed;
  return *armed;
}

}  // namespace

void UseFailpointsOf(const std::string& dir, const std::string& instance) {
  TheArmed().Use(dir, instance);
}

absl::Status HitFailpoint(const char* name) {
  Action action;
  const absl::StatusOr<bool> fires = TheArmed().Take(name, &action);
  if (!fires.ok()) {
    spdlog::critical("failpoint {}: {}", name, std::string(fires.status().message()));
    std::abort();
  }
  if (!*fires) return absl::OkStatus();
  spdlog::warn("failpoint {} fires", name);
  spdlog::default_logger()->flush();
  switch (action.kind) {
    case Action::Kind::kKill:
      kill(getpid(), SIGKILL);
      break;
    case Action::Kind::kStop:
      raise(SIGSTOP);  // to this thread: sent to the process, it may take effect after a few more instructions here
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
