#include "bench/load_generator/coordinator_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/durable_file.h"
#include "common/status_util.h"

namespace rlhf::bench {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kReady = absl::Seconds(60);

}  // namespace

absl::StatusOr<ProcessUsage> UsageOf(pid_t pid) {
  ProcessUsage usage;
  std::ifstream stat(absl::StrCat("/proc/", pid, "/stat"));
  std::ostringstream line;
  line << stat.rdbuf();  // of a process that ends meanwhile nothing, where an iterator would throw
  const std::string text = line.str();
  if (text.empty()) return absl::NotFoundError(absl::StrCat("process ", pid, " is gone"));
  std::istringstream rest(text.substr(text.rfind(')') + 2));
  std::string field;
  double ticks = 0;
  // Fields 14 and 15 of the line, user and system time; this stream begins at field 3.
  for (int i = 3; i <= 15 && rest >> field; ++i) ticks += i >= 14 ? std::stod(field) : 0;
  usage.cpu_seconds = ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  for (std::string line; std::getline(status, line);) {
    double kilobytes = 0;
    if (std::sscanf(line.c_str(), "VmRSS: %lf", &kilobytes) == 1) usage.resident_mb = kilobytes / 1024;
    if (std::sscanf(line.c_str(), "VmHWM: %lf", &kilobytes) == 1) usage.peak_mb = kilobytes / 1024;
  }
  return usage;
}

absl::StatusOr<std::unique_ptr<CoordinatorProcess>> CoordinatorProcess::Start(const Options& options) {
  RLHF_ASSIGN_OR_RETURN(std::unique_ptr<CoordinatorProcess> process, Spawn(options));
  RLHF_RETURN_IF_ERROR(process->WaitReady(kReady));
  return process;
}

absl::StatusOr<std::unique_ptr<CoordinatorProcess>> CoordinatorProcess::Spawn(const Options& options) {
  std::unique_ptr<CoordinatorProcess> process(new CoordinatorProcess(options));
  std::error_code ignored;
  fs::remove(process->ports_file(), ignored);
  std::string binary = options.binary;
  if (binary.empty()) binary = (fs::read_symlink("/proc/self/exe").parent_path() / "rlhf-coordinator").string();
  std::vector<std::string> arguments = {binary,
                                        "--data-dir",
                                        options.data_dir,
                                        "--artifact-root",
                                        options.dir + "/artifacts",
                                        "--ports-file",
                                        process->ports_file(),
                                        "--log-level",
                                        "warn"};
  if (options.tls.insecure) {
    arguments.push_back("--insecure");
  } else {
    arguments.insert(arguments.end(),
                     {"--tls-ca", options.tls.ca_file, "--tls-cert", options.tls.cert_file, "--tls-key",
                      options.tls.key_file, "--bootstrap-tokens", options.dir + "/tokens.json"});
  }
  arguments.insert(arguments.end(), options.flags.begin(), options.flags.end());
  process->pid_ = fork();
  if (process->pid_ < 0) return absl::UnavailableError("cannot fork");
  if (process->pid_ == 0) {
    const int log = open(process->log_file().c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(log, 1);
    dup2(log, 2);
    std::vector<char*> raw;
    for (std::string& argument : arguments) raw.push_back(argument.data());
    raw.push_back(nullptr);
    execv(binary.c_str(), raw.data());
    _exit(127);
  }
  return process;
}

absl::Status CoordinatorProcess::WaitReady(absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  while (absl::Now() < deadline) {
    if (const auto text = ReadFile(ports_file()); text.ok()) {
      const auto json = nlohmann::json::parse(*text, nullptr, false);
      ready_after_ = absl::Now() - started_;
      for (const auto& [name, port] : json.items()) ports_[name] = port.get<int>();
      if (const auto secrets = ReadFile(options_.dir + "/tokens.json"); !options_.tls.insecure && secrets.ok())
        tokens_ = nlohmann::json::parse(*secrets).get<std::map<std::string, std::string>>();
      return absl::OkStatus();
    }
    if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = -1;
      return absl::UnavailableError(absl::StrCat("the coordinator ended before it was ready; see ", log_file()));
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
  return absl::DeadlineExceededError(
      absl::StrCat("the coordinator was not ready in ", absl::FormatDuration(patience), "; see ", log_file()));
}

CoordinatorProcess::~CoordinatorProcess() {
  if (pid_ <= 0) return;
  Signal(SIGKILL);
  Wait();
}

std::string CoordinatorProcess::address(const std::string& listener) const {
  return absl::StrCat("127.0.0.1:", ports_.at(listener));
}

std::string CoordinatorProcess::token(const std::string& role) const {
  const auto it = tokens_.find(role);
  return it == tokens_.end() ? "" : it->second;
}

void CoordinatorProcess::Signal(int signal_number) {
  if (pid_ > 0) kill(pid_, signal_number);
}

int CoordinatorProcess::Wait() {
  int status = 0;
  if (pid_ <= 0 || waitpid(pid_, &status, 0) != pid_) return -1;
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

absl::StatusOr<int> CoordinatorProcess::WaitFor(absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  int status = 0;
  while (pid_ > 0 && waitpid(pid_, &status, WNOHANG) != pid_) {
    if (absl::Now() > deadline) return absl::DeadlineExceededError(absl::StrCat("process ", pid_, " lives"));
    absl::SleepFor(absl::Milliseconds(5));
  }
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

}  // namespace rlhf::bench
