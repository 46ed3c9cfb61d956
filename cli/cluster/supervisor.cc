#include "cli/cluster/supervisor.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <ios>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/status_util.h"

namespace rlhf::cli {
namespace {

constexpr int kHangs = 3, kSilences = 12;  // in a row, until it is killed

std::string HowItEnded(int status) {
  if (WIFSIGNALED(status)) return absl::StrCat("killed by signal ", WTERMSIG(status));
  return absl::StrCat("exit code ", WEXITSTATUS(status));
}

// Where its output goes.
absl::StatusOr<int> OutputOf(const ProcessSpec& spec) {
  if (spec.lines != nullptr) return spec.lines->Open(spec.name);
  const std::string& file = spec.log_file;
  const int log = file.empty() ? fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3)
                               : open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log < 0) return absl::InternalError(absl::StrCat("cannot open ", file, ": ", std::strerror(errno)));
  return log;
}

// As shells have it: 126 and 127 are of a program that cannot be run.
bool CommandIsWrong(int status) {
  if (!WIFEXITED(status)) return false;
  const int code = WEXITSTATUS(status);
  return code == 2 || code == 126 || code == 127;
}

}  // namespace

std::string LastWords(const std::string& log_file) {
  if (log_file.empty()) return "";
  constexpr std::streamoff kEnough = 4096;
  std::ifstream log(log_file, std::ios::binary | std::ios::ate);
  const std::streamoff size = log.tellg();
  log.seekg(std::max<std::streamoff>(0, size - kEnough));
  std::string last;
  for (std::string line; std::getline(log, line);) {
    if (!absl::StripAsciiWhitespace(line).empty()) last = line;
  }
  return absl::StrCat(last.empty() ? "" : ": ", last, "; see ", log_file);
}

Supervisor::~Supervisor() {
  StopAll(absl::Seconds(5));
}

absl::Status Supervisor::Spawn(Child& child) {
  std::vector<char*> argv;
  for (std::string& word : child.spec.command) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  for (const auto& [key, value] : child.spec.environment) environment.push_back(absl::StrCat(key, "=", value));
  std::vector<char*> envp;
  for (std::string& entry : environment) envp.push_back(entry.data());
  envp.push_back(nullptr);
  RLHF_ASSIGN_OR_RETURN(const int log, OutputOf(child.spec));
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) {
    close(log);
    return absl::ResourceExhaustedError(absl::StrCat("cannot start ", child.spec.name, ": ", std::strerror(errno)));
  }
  if (pid == 0) {
    // Only async-signal-safe calls from here on. The child dies with us, whatever kills us.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    setpgid(0, 0);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execve(argv[0], argv.data(), envp.data());
    for (const char* text : {static_cast<const char*>(argv[0]), ": cannot be run\n"}) {
      if (write(STDERR_FILENO, text, std::strlen(text)) < 0) break;
    }
    _exit(127);
  }
  close(log);
  child.pid = pid;
  child.started = Clock::Real()->Now();
  return absl::OkStatus();
}

absl::Status Supervisor::Start(const ProcessSpec& spec) {
  Child child;
  child.spec = spec;
  child.backoff = first_backoff_;
  absl::Status status = Spawn(child);
  if (!status.ok()) return status;
  if (spec.health_port > 0) health_.Watch(spec.name, spec.health_port);
  children_.push_back(std::move(child));
  return status;
}

std::string Supervisor::Hanging() const {
  std::string text;
  for (const HealthWatch::Hanging& one : health_.hanging())
    absl::StrAppend(&text, text.empty() ? "" : "; ", one.name, ": ", one.why);
  return text;
}

void Supervisor::KillHanging() {
  for (const HealthWatch::Hanging& one : health_.hanging()) {
    if (one.times < (one.own_word ? kHangs : kSilences)) continue;
    for (Child& child : children_) {
      // Once: a process that does not end, because a device holds it, is its pod's to end.
      if (child.spec.name != one.name || child.pid <= 0 || !child.hung.empty()) continue;
      child.hung = one.why;
      kill(child.pid, SIGKILL);
    }
  }
}

void Supervisor::Tick(const std::function<void(const std::string&, const std::string&)>& restarted) {
  KillHanging();
  for (Child& child : children_) {
    if (child.pid > 0) {
      int status = 0;
      if (waitpid(child.pid, &status, WNOHANG) != child.pid) continue;
      const absl::Duration now = Clock::Real()->Now();
      if (now - child.started > absl::Seconds(10)) child.backoff = first_backoff_;
      child.pid = -1;
      if (CommandIsWrong(status)) {
        child.restart_at = absl::InfiniteDuration();
        if (hopeless_.empty()) {
          hopeless_ =
              absl::StrCat(child.spec.name, " ended (", HowItEnded(status), ")", LastWords(child.spec.log_file));
        }
        continue;
      }
      child.restart_at = now + child.backoff;
      child.backoff = std::min(2 * child.backoff, last_backoff_);
      health_.Forget(child.spec.name);
      const std::string hung = std::exchange(child.hung, "");
      restarted(child.spec.name, hung.empty() ? HowItEnded(status) : absl::StrCat("killed, for it hung: ", hung));
    } else if (Clock::Real()->Now() >= child.restart_at) {
      if (!Spawn(child).ok()) child.restart_at = Clock::Real()->Now() + child.backoff;
    }
  }
}

void Supervisor::StopAll(absl::Duration grace) {
  const absl::Duration deadline = Clock::Real()->Now() + grace;
  for (auto child = children_.rbegin(); child != children_.rend(); ++child) {
    if (child->pid > 0) kill(child->pid, SIGTERM);
  }
  for (auto child = children_.rbegin(); child != children_.rend(); ++child) {
    while (child->pid > 0) {
      int status = 0;
      const pid_t ended = waitpid(child->pid, &status, WNOHANG);
      if (ended == child->pid || (ended < 0 && errno == ECHILD)) {
        child->pid = -1;
      } else if (Clock::Real()->Now() > deadline) {
        kill(child->pid, SIGKILL);
        waitpid(child->pid, &status, 0);
        child->pid = -1;
      } else {
        absl::SleepFor(absl::Milliseconds(20));
      }
    }
  }
  children_.clear();
}

}  // namespace rlhf::cli
