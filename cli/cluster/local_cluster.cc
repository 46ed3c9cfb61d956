#include "cli/cluster/local_cluster.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/secret_file.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/free_port.h"
#include "common/status_util.h"

namespace rlhf::cli {
namespace {

namespace fs = std::filesystem;

// Reading what is open takes longer the more there is; the same as the manifests' startupProbe.
constexpr absl::Duration kCoordinatorReady = absl::Minutes(5);
// How a process ends that says "start me again".
constexpr char kTryAgain[] = "exit code 75";

// Where roles reach the listener: its own host, or this one when it listens on all.
std::string HostOf(const std::string& address) {
  const std::string host = address.substr(0, address.rfind(':'));
  return host.empty() || host == "0.0.0.0" || host == "*" ? "127.0.0.1" : host;
}

// "host:port" with the port `n` higher.
absl::StatusOr<std::string> AddressAfter(const std::string& address, int n) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 1 || port + n > 65535)
    return absl::InvalidArgumentError(
        absl::StrCat("--role-http-address: expected host:port with ", n, " ports after it, found \"", address, "\""));
  return absl::StrCat(address.substr(0, colon), ":", port + n);
}

}  // namespace

std::vector<std::pair<std::string, std::string>> LocalCluster::Environment() const {
  // Many processes share few cores: no spinning while waiting for work, but for the microseconds between two products.
  const std::string threads = std::to_string(options_.threads);
  return {{"OMP_NUM_THREADS", threads},
          {"MKL_NUM_THREADS", threads},
          {"OMP_WAIT_POLICY", "PASSIVE"},
          {"GOMP_SPINCOUNT", "2000"},
          {"KMP_BLOCKTIME", "0"}};
}

LocalCluster::~LocalCluster() {
  supervisor_.StopAll(absl::Seconds(5));  // before the next one can have the folder
  if (lock_ >= 0) close(lock_);
}

absl::Status LocalCluster::TakeFolder() {
  const std::string path = (fs::path(options_.dir) / "up.lock").string();
  lock_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0) return WriteError(errno, "open", path);
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    char holder[32] = {};
    const ssize_t n = pread(lock_, holder, sizeof(holder) - 1, 0);
    return absl::FailedPreconditionError(
        absl::StrCat("the folder ", options_.dir, " is in use by another `rlhfctl up` (process ",
                     n > 0 ? holder : "unknown", "): stop that one first, or give this one another --dir"));
  }
  const std::string pid = absl::StrCat(getpid());
  if (ftruncate(lock_, 0) != 0 || pwrite(lock_, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size()))
    return WriteError(errno, "write", path);
  return absl::OkStatus();
}

absl::Status LocalCluster::MakePki() {
  std::vector<LocalPki::Member> members = {{"coordinator", "coordinator", options_.hosts}};
  for (int i = 0; i < options_.rollout_workers; ++i)
    members.push_back({"rollout_worker", absl::StrCat("rollout-", i), {}});
  for (int i = 0; i < options_.reward_servers; ++i)
    members.push_back({"reward_server", absl::StrCat("reward-", i), {}});
  for (int i = 0; i < options_.learners; ++i) members.push_back({"learner", absl::StrCat("learner-", i), {}});
  pki_.emplace((fs::path(options_.dir) / "pki").string(), std::move(members));
  return pki_->Issue(absl::Now());
}

absl::Status LocalCluster::StartCoordinator(const std::function<bool()>& stop) {
  const fs::path dir = options_.dir;
  const std::string ports_file = (dir / "ports" / "coordinator.json").string();
  std::error_code ignored;
  fs::remove(ports_file, ignored);
  ProcessSpec spec;
  spec.name = "coordinator";
  Log(&spec);
  spec.command = {(fs::path(options_.bin_dir) / "rlhf-coordinator").string(),
                  "--data-dir",
                  (dir / "data").string(),
                  "--artifact-root",
                  (dir / "artifacts").string(),
                  "--fleet-address",
                  fleet_address_,
                  "--api-address",
                  api_address_,
                  "--http-address",
                  http_address_,
                  "--web-address",
                  web_address_,
                  "--tls-ca",
                  (dir / "pki" / "ca.pem").string(),
                  "--tls-cert",
                  (dir / "pki" / "coordinator.pem").string(),
                  "--tls-key",
                  (dir / "pki" / "coordinator.key").string(),
                  "--api-cert",
                  (dir / "pki" / "coordinator.pem").string(),
                  "--api-key",
                  (dir / "pki" / "coordinator.key").string(),
                  "--bootstrap-tokens",
                  (dir / "tokens" / "tokens.json").string(),
                  "--audit-key-file",
                  (dir / "pki" / "audit.key").string(),
                  "--ports-file",
                  ports_file,
                  "--heartbeat-ms",
                  absl::StrCat(options_.heartbeat_ms),
                  "--lease-ms",
                  absl::StrCat(3 * options_.heartbeat_ms),
                  "--log-level",
                  options_.log_level};
  if (options_.traces) spec.command.insert(spec.command.end(), {"--trace-dir", (dir / "traces").string()});
  Wrap(&spec);
  RLHF_RETURN_IF_ERROR(supervisor_.Start(spec));
  const absl::Duration deadline = Clock::Real()->Now() + kCoordinatorReady;
  const std::string lines = spec.log_file.empty() ? "its lines above" : spec.log_file;
  std::string ended;
  while (Clock::Real()->Now() < deadline) {
    if (stop()) return absl::CancelledError("told to stop while the coordinator was starting");
    supervisor_.Tick([&ended](const std::string&, const std::string& how) {
      if (how != kTryAgain) ended = how;
    });
    if (!supervisor_.Hopeless().empty()) return absl::InternalError(supervisor_.Hopeless());
    if (!ended.empty())
      return absl::InternalError(absl::StrCat("the coordinator ended (", ended, ") before it was ready",
                                              lines_ == nullptr ? LastWords(spec.log_file) : "; see its lines above"));
    if (auto text = ReadFile(ports_file); text.ok()) {
      const auto json = nlohmann::json::parse(*text, nullptr, false);
      if (json.is_object() && json.contains("fleet") && json.contains("api") && json.contains("http") &&
          json.contains("web")) {
        fleet_address_ = absl::StrCat(HostOf(fleet_address_), ":", json["fleet"].get<int>());
        api_address_ = absl::StrCat("127.0.0.1:", json["api"].get<int>());
        http_address_ = absl::StrCat("127.0.0.1:", json["http"].get<int>());
        web_address_ = absl::StrCat("127.0.0.1:", json["web"].get<int>());
        return absl::OkStatus();
      }
    }
    absl::SleepFor(absl::Milliseconds(50));
  }
  return absl::DeadlineExceededError(
      absl::StrCat("the coordinator was not ready within ", absl::FormatDuration(kCoordinatorReady), "; see ", lines));
}

absl::Status LocalCluster::StartRole(const std::string& binary, const std::string& role, const std::string& name,
                                     std::vector<std::string> extra) {
  const fs::path dir = options_.dir;
  ProcessSpec spec;
  spec.name = name;
  Log(&spec);
  spec.environment = Environment();
  spec.command = {(fs::path(options_.bin_dir) / binary).string(),
                  "--coordinator",
                  options_.via.count(name) > 0 ? options_.via.at(name) : fleet_address_,
                  "--instance",
                  name,
                  "--artifact-root",
                  (dir / "artifacts").string(),
                  "--cache-dir",
                  (dir / "cache" / name).string(),
                  "--ports-file",
                  (dir / "ports" / (name + ".json")).string(),
                  "--tls-ca",
                  (dir / "pki" / "ca.pem").string(),
                  "--tls-cert",
                  (dir / "pki" / (name + ".pem")).string(),
                  "--tls-key",
                  (dir / "pki" / (name + ".key")).string(),
                  "--threads",
                  std::to_string(options_.threads),
                  "--device",
                  options_.device,
                  "--log-level",
                  options_.log_level};
  spec.command.insert(spec.command.end(), extra.begin(), extra.end());
  if (!options_.role_http_address.empty()) {
    RLHF_ASSIGN_OR_RETURN(const std::string http, AddressAfter(options_.role_http_address, next_role_++));
    spec.command.insert(spec.command.end(), {"--http-address", http});
    if (!absl::SimpleAtoi(http.substr(http.rfind(':') + 1), &spec.health_port)) spec.health_port = 0;
  }
  RLHF_RETURN_IF_ERROR(MakeDirs((dir / "cache" / name).string()));
  if (options_.traces) spec.command.insert(spec.command.end(), {"--trace-dir", (dir / "traces").string()});
  Wrap(&spec);
  return supervisor_.Start(spec);
}

absl::Status LocalCluster::WriteContexts() {
  const fs::path dir = options_.dir;
  RLHF_ASSIGN_OR_RETURN(const std::string text, ReadFile((dir / "tokens" / "tokens.json").string()));
  const auto tokens = nlohmann::json::parse(text, nullptr, false);
  if (!tokens.is_object())
    return absl::DataLossError(
        "tokens/tokens.json: expected a JSON object of tokens; remove the folder and start anew");
  for (const auto& [name, token] : tokens.items()) {
    RLHF_RETURN_IF_ERROR(WriteSecretFile((dir / "tokens" / name).string(), token.get<std::string>() + "\n"));
    nlohmann::json context = {{"address", api_address_},
                              {"web", absl::StrCat("https://", web_address_)},
                              {"ca_file", "pki/ca.pem"},
                              {"token_file", "tokens/" + name}};
    // Who may read the audit log verifies it.
    if (name == "admin" || name == "overseer") context["audit_public_key"] = "pki/audit.key.pub";
    const std::string file = name == "submitter" ? "client.json" : name + ".json";
    RLHF_RETURN_IF_ERROR(WriteFileDurably((dir / file).string(), context.dump(2) + "\n"));
  }
  return absl::OkStatus();
}

void LocalCluster::Wrap(ProcessSpec* spec) const {
  const auto wrap = options_.wrap.find(spec->name);
  if (wrap == options_.wrap.end()) return;
  // An absolute path is what execve wants; env finds the rest.
  std::vector<std::string> words = absl::StrSplit(absl::StrCat("/usr/bin/env ", wrap->second), ' ', absl::SkipEmpty());
  words.insert(words.end(), spec->command.begin(), spec->command.end());
  spec->command = std::move(words);
}

void LocalCluster::Log(ProcessSpec* spec) const {
  spec->lines = lines_.get();
  if (lines_ == nullptr) spec->log_file = (fs::path(options_.dir) / "logs" / (spec->name + ".log")).string();
}

std::vector<std::string> LocalCluster::Evidence() const {
  if (!options_.evidence) return {};
  return {"--evidence-dir", (fs::path(options_.dir) / "evidence").string()};
}

absl::Status LocalCluster::Start(const std::function<bool()>& stop) {
  if (!options_.role_http_address.empty())
    RLHF_RETURN_IF_ERROR(AddressAfter(options_.role_http_address, std::max(0, roles() - 1)).status());
  options_.dir = fs::absolute(options_.dir).string();
  // Tokens, prompts, answers and models are in it.
  RLHF_RETURN_IF_ERROR(MakePrivateFolder(options_.dir));
  RLHF_RETURN_IF_ERROR(TakeFolder());
  if (options_.log_to_stdout) {
    RLHF_ASSIGN_OR_RETURN(lines_, OutputLines::To(STDOUT_FILENO));
  }
  for (const char* folder : {"data", "artifacts", "tokens", "ports", "logs", "cache"}) {
    RLHF_RETURN_IF_ERROR(MakeDirs((fs::path(options_.dir) / folder).string()));
  }
  RLHF_RETURN_IF_ERROR(MakePki());
  // Chosen here and not by the coordinator: one that is started again must come back where its workers look for it.
  fleet_address_ = options_.fleet_address;
  api_address_ = options_.api_address;
  http_address_ = options_.http_address;
  web_address_ = options_.web_address;
  for (std::string* address : {&fleet_address_, &api_address_, &http_address_, &web_address_}) {
    if (!address->empty()) continue;
    RLHF_ASSIGN_OR_RETURN(const int port, FreeLoopbackPort());
    *address = absl::StrCat("127.0.0.1:", port);
  }
  RLHF_RETURN_IF_ERROR(StartCoordinator(stop));
  RLHF_RETURN_IF_ERROR(WriteContexts());
  for (int i = 0; i < options_.reward_servers; ++i) {
    RLHF_RETURN_IF_ERROR(StartRole("rlhf-reward-server", "reward_server", absl::StrCat("reward-", i), {}));
  }
  for (int i = 0; i < options_.rollout_workers; ++i) {
    std::vector<std::string> extra = Evidence();
    extra.insert(extra.end(), {"--address", "127.0.0.1:0", "--slots", std::to_string(options_.slots), "--precision",
                               options_.rollout_precision});
    if (!options_.shm_dir.empty()) extra.insert(extra.end(), {"--shm-dir", options_.shm_dir});
    RLHF_RETURN_IF_ERROR(
        StartRole("rlhf-rollout-worker", "rollout_worker", absl::StrCat("rollout-", i), std::move(extra)));
  }
  for (int i = 0; i < options_.learners; ++i) {
    std::vector<std::string> extra = Evidence();
    if (!options_.shm_dir.empty()) extra.insert(extra.end(), {"--shm-dir", options_.shm_dir});
    if (options_.device != "cpu") extra.push_back("--share-gpu-weights");
    if (options_.tensorboard)
      extra.insert(extra.end(), {"--tensorboard-dir", (fs::path(options_.dir) / "tensorboard").string()});
    RLHF_RETURN_IF_ERROR(StartRole("rlhf-learner", "learner", absl::StrCat("learner-", i), std::move(extra)));
  }
  return absl::OkStatus();
}

}  // namespace rlhf::cli
