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
  std::string text((std::istreambuf_iterator<char>(stat)), std::istreambuf_iterator<char>());
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
  const std::string ports = absl::StrCat(options.dir, "/ports.json");
  const std::string tokens = absl::StrCat(options.dir, "/tokens.json");
  std::error_code ignored;
  fs::remove(ports, ignored);
  std::string binary = options.binary;
  if (binary.empty()) binary = (fs::read_symlink("/proc/self/exe").parent_path() / "rlhf-coordinator").string();
  std::vector<std::string> arguments = {binary,
                                        "--data-dir",
                                        options.data_dir,
                                        "--artifact-root",
                                        options.dir + "/artifacts",
                                        "--ports-file",
                                        ports,
                                        "--log-level",
                                        "warn"};
  if (options.tls.insecure) {
    arguments.push_back("--insecure");
  } else {
    arguments.insert(arguments.end(), {"--tls-ca", options.tls.ca_file, "--tls-cert", options.tls.cert_file,
                                       "--tls-key", options.tls.key_file, "--bootstrap-tokens", tokens});
  }
  const absl::Time started = absl::Now();
  std::unique_ptr<CoordinatorProcess> process(new CoordinatorProcess());
  process->pid_ = fork();
  if (process->pid_ < 0) return absl::UnavailableError("cannot fork");
  if (process->pid_ == 0) {
    const int log = open(absl::StrCat(options.dir, "/coordinator.log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(log, 1);
    dup2(log, 2);
    std::vector<char*> raw;
    for (std::string& argument : arguments) raw.push_back(argument.data());
    raw.push_back(nullptr);
    execv(binary.c_str(), raw.data());
    _exit(127);
  }
  while (absl::Now() - started < kReady) {
    if (const auto text = ReadFile(ports); text.ok()) {
      const auto json = nlohmann::json::parse(*text, nullptr, false);
      process->ready_after_ = absl::Now() - started;
      for (const auto& [name, port] : json.items()) process->ports_[name] = port.get<int>();
      if (const auto secrets = ReadFile(tokens); !options.tls.insecure && secrets.ok())
        process->tokens_ = nlohmann::json::parse(*secrets).get<std::map<std::string, std::string>>();
      return process;
    }
    if (waitpid(process->pid_, nullptr, WNOHANG) == process->pid_) {
      process->pid_ = -1;
      return absl::UnavailableError(absl::StrCat(binary, " ended at once; see ", options.dir, "/coordinator.log"));
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
  return absl::DeadlineExceededError(absl::StrCat(binary, " was not ready in 60 s"));
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

}  // namespace rlhf::bench
