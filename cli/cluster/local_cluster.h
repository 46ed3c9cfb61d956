// A whole service of real processes on loopback: what `rlhfctl up` runs.
//
// Folder layout: DIR/client.json (context for rlhfctl and the Python client), DIR/tokens/, DIR/pki/, DIR/data/
// (coordinator), DIR/artifacts/ (shared root), DIR/cache/NAME/ (private), DIR/ports/NAME.json, DIR/logs/NAME.log.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "cli/cluster/local_pki.h"
#include "cli/cluster/supervisor.h"

namespace rlhf::cli {

struct ClusterOptions {
  std::string dir = ".rlhf";
  std::string bin_dir;  // where the binaries are; default: beside rlhfctl
  int rollout_workers = 2;
  int reward_servers = 1;
  int learners = 2;
  int slots = 64;   // a rollout worker's sequences at once
  int threads = 1;  // compute threads a process
  std::string device = "cpu", rollout_precision = "float32";
  std::string shm_dir;  // of learners and rollout workers; empty: their default
  std::string log_level = "info";
  // By instance ("coordinator", "rollout-0", …): words put before its command (env, ip netns exec, taskset), and the
  // address at which it reaches the coordinator, when not directly.
  std::map<std::string, std::string> wrap, via;
  bool evidence = false;       // learners and rollout workers keep DIR/evidence for `ledger --check --evidence`
  bool tensorboard = false;    // learners keep event files in DIR/tensorboard
  bool traces = false;         // every role keeps its spans in DIR/traces
  bool log_to_stdout = false;  // lines go to our own stdout, behind their process's name, and not to DIR/logs
  int heartbeat_ms = 3000;     // and a session's life without one is three of them
  double restart_seconds = 1;  // before a process that ended is started again; doubles while it ends soon after
  double restart_seconds_most = 30;
  // host:port; empty: 127.0.0.1 and a free port.
  std::string fleet_address, api_address, http_address, web_address;
  // host:port of the first role's metrics and probes; the next roles (reward servers, then rollout workers, then
  // learners) have the ports after it. Empty: 127.0.0.1 and free ports.
  std::string role_http_address;
  std::vector<std::string> hosts;  // more names that clients use, for the certificate
};

class LocalCluster {
 public:
  explicit LocalCluster(ClusterOptions options)
      : options_(std::move(options)),
        supervisor_(absl::Seconds(options_.restart_seconds), absl::Seconds(options_.restart_seconds_most)) {}
  ~LocalCluster();
  LocalCluster(const LocalCluster&) = delete;
  LocalCluster& operator=(const LocalCluster&) = delete;
  // Takes the folder, which one service at a time uses (FailedPrecondition names the process that has it, and nothing
  // in the folder is changed). Makes the certificates, and CA and tokens where there are none, starts every process,
  // and returns when the coordinator is ready, which takes minutes where it has much to recover. InvalidArgument for
  // addresses that are none; Internal when the coordinator ends meanwhile, Cancelled when `stop` (asked 20 times a
  // second) says so.
  absl::Status Start(const std::function<bool()>& stop);
  // To be called now and then: renews certificates that are about to end.
  absl::Status RenewCertificates(absl::Time now) { return pki_->RenewWhenDue(now); }
  Supervisor& supervisor() { return supervisor_; }
  const std::string& api_address() const { return api_address_; }
  const std::string& http_address() const { return http_address_; }
  const std::string& web_address() const { return web_address_; }
  int roles() const { return options_.rollout_workers + options_.reward_servers + options_.learners; }

 private:
  absl::Status TakeFolder();
  absl::Status MakePki();
  absl::Status StartCoordinator(const std::function<bool()>& stop);
  absl::Status StartRole(const std::string& binary, const std::string& role, const std::string& name,
                         std::vector<std::string> extra);
  absl::Status WriteContexts();
  std::vector<std::string> Evidence() const;
  void Wrap(ProcessSpec* spec) const;
  // Where its lines go.
  void Log(ProcessSpec* spec) const;
  std::vector<std::pair<std::string, std::string>> Environment() const;

  ClusterOptions options_;
  std::unique_ptr<OutputLines> lines_;  // with log_to_stdout
  Supervisor supervisor_;
  std::optional<LocalPki> pki_;
  int next_role_ = 0;  // of role_http_address
  int lock_ = -1;      // DIR/up.lock, open and locked
  std::string fleet_address_, api_address_, http_address_, web_address_;
};

}  // namespace rlhf::cli
