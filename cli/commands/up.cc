// up: a whole service on this machine.
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/cluster/local_cluster.h"
#include "cli/commands/commands.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/process.h"
#include "common/status_util.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::cli {
namespace {

// Registered roles, or -1 while the coordinator cannot be asked.
int RegisteredRoles(const std::string& dir) {
  ConnectionFlags connection;
  connection.context_file = dir + "/admin.json";
  auto channel = Connect(connection);
  if (!channel.ok()) return -1;
  v1::ListWorkersRequest request;
  request.mutable_page()->set_page_size(1000);
  v1::ListWorkersResponse response;
  const auto context = CallContext(absl::Seconds(5));
  if (!v1::AdminService::NewStub(*channel)->ListWorkers(context.get(), request, &response).ok()) return -1;
  return response.workers_size();
}

// Until a signal comes, which it returns, or until a process is beyond help.
int Supervise(const ClusterOptions& options, LocalCluster& cluster) {
  bool announced = false;
  absl::Duration next_look = Clock::Real()->Now(), next_renewal = next_look;
  return WaitForTermination([&] {
    cluster.supervisor().Tick([](const std::string& name, const std::string& how) {
      std::printf("rlhfctl up: %s ended (%s); starting it again\n", name.c_str(), how.c_str());
      std::fflush(stdout);
    });
    const absl::Duration now = Clock::Real()->Now();
    if (now >= next_renewal) {
      next_renewal = now + absl::Minutes(1);
      if (const absl::Status status = cluster.RenewCertificates(absl::Now()); !status.ok())
        std::fprintf(stderr, "rlhfctl up: certificates could not be renewed: %s\n", status.ToString().c_str());
    }
    if (!announced && now >= next_look) {
      next_look = now + absl::Milliseconds(500);
      if (RegisteredRoles(options.dir) >= cluster.roles()) {
        announced = true;
        (void)WriteFileDurably(options.dir + "/ready", "ready\n");
        std::printf(
            "rlhfctl up: ready. API %s, pages https://%s, metrics and probes http://%s\nnext: rlhfctl --context "
            "%s/client.json submit "
            "JOB.yaml --follow\n",
            cluster.api_address().c_str(), cluster.web_address().c_str(), cluster.http_address().c_str(),
            options.dir.c_str());
        std::fflush(stdout);
      }
    }
    return !cluster.supervisor().Hopeless().empty();
  });
}

int Up(const ClusterOptions& options) {
  BeginProcess();
  LocalCluster cluster(options);
  std::printf("rlhfctl up: starting 1 coordinator, %d rollout workers, %d reward servers, %d learners in %s\n",
              options.rollout_workers, options.reward_servers, options.learners, options.dir.c_str());
  std::fflush(stdout);
  int signal = 0;
  const absl::Status started = cluster.Start([&signal] { return (signal = TakeTerminationSignal()) != 0; });
  if (signal == 0 && !started.ok()) return Fail(Here(started));
  if (signal == 0) signal = Supervise(options, cluster);
  const std::string hopeless = cluster.supervisor().Hopeless();
  if (hopeless.empty()) std::printf("rlhfctl up: signal %d, stopping\n", signal);
  std::error_code ignored;
  std::filesystem::remove(options.dir + "/ready", ignored);
  cluster.supervisor().StopAll(absl::Seconds(30));
  return hopeless.empty() ? static_cast<int>(v1::EXIT_OK) : Fail(Here(absl::FailedPreconditionError(hopeless)));
}

void AddByInstance(CLI::App* up, const std::string& name, std::map<std::string, std::string>* map, const char* help) {
  up->add_option_function<std::vector<std::string>>(
        name,
        [map, name](const std::vector<std::string>& entries) {
          for (const std::string& entry : entries) {
            const size_t equals = entry.find('=');
            if (equals == std::string::npos || equals == 0)
              throw CLI::ValidationError(name, absl::StrCat("expected INSTANCE=…, found \"", entry, "\""));
            (*map)[entry.substr(0, equals)] = entry.substr(equals + 1);
          }
        },
        help)
      ->allow_extra_args(false);
}

}  // namespace

void AddUpCommand(CLI::App& app, Run* run) {
  const auto options = std::make_shared<ClusterOptions>();
  std::error_code error;
  options->bin_dir = std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
  auto* up = app.add_subcommand(
      "up", "Run a whole service on this machine, with a CA and tokens of its own; stop it with Ctrl-C");
  up->add_option("--dir", options->dir, "State, logs, certificates and tokens go here")->capture_default_str();
  up->add_option("--bin-dir", options->bin_dir, "Where the role binaries are (default: beside rlhfctl)");
  up->add_option("--rollout-workers", options->rollout_workers, "How many")
      ->check(CLI::Range(0, 64))
      ->capture_default_str();
  up->add_option("--reward-servers", options->reward_servers, "How many")
      ->check(CLI::Range(0, 64))
      ->capture_default_str();
  auto* learners = up->add_option("--learners", options->learners, "How many learner processes (one on a GPU)")
                       ->check(CLI::Range(0, 64))
                       ->capture_default_str();
  up->add_option("--slots", options->slots, "Sequences a rollout worker generates at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  up->add_option("--threads", options->threads, "Compute threads a process")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  up->add_option("--device", options->device, "cpu or cuda:N")->capture_default_str();
  up->add_option("--rollout-precision", options->rollout_precision,
                 "--precision of the rollout workers: float32, bfloat16 or int8")
      ->check(CLI::IsMember({"float32", "bfloat16", "int8"}))
      ->capture_default_str();
  up->add_option("--shm-dir", options->shm_dir,
                 "--shm-dir of learners and rollout workers: a folder in memory, or none (weights over the network)");
  AddByInstance(up, "--wrap", &options->wrap,
                "INSTANCE=WORDS put before its command, for instance \"rollout-0=taskset -c 3\"; may be repeated");
  AddByInstance(up, "--via", &options->via,
                "INSTANCE=HOST:PORT where it reaches the coordinator (a proxy); may be repeated");
  up->add_flag(
      "--evidence", options->evidence,
      "Learners and rollout workers log what they trained and what was accepted, for `ledger --check --evidence`");
  up->add_flag("--tensorboard", options->tensorboard,
               "Learners keep the steps' metrics as TensorBoard event files in DIR/tensorboard");
  up->add_flag("--log-to-stdout", options->log_to_stdout,
               "Every process's lines go to stdout, each behind its instance's name, instead of to DIR/logs");
  up->add_flag("--traces", options->traces, "Every role keeps its spans, as OTLP/JSON lines, in DIR/traces");
  up->add_option("--heartbeat-ms", options->heartbeat_ms, "Between heartbeats; three missed ones end a session")
      ->check(CLI::Range(50, 60000))
      ->capture_default_str();
  up->add_option("--restart-seconds", options->restart_seconds, "Wait before a process that ended is started again")
      ->check(CLI::Range(0.0, 600.0))
      ->capture_default_str();
  up->add_option("--restart-seconds-most", options->restart_seconds_most,
                 "What that wait grows to while a process ends soon after its start")
      ->check(CLI::Range(0.0, 600.0))
      ->capture_default_str();
  up->add_option("--fleet-address", options->fleet_address,
                 "host:port for the fleet (default: 127.0.0.1 and a free port); give its host as --host, too");
  up->add_option("--api-address", options->api_address, "host:port of the API (default: 127.0.0.1 and a free port)");
  up->add_option("--web-address", options->web_address, "host:port of the web pages (default likewise)");
  up->add_option("--http-address", options->http_address, "host:port of metrics and probes (default likewise)");
  up->add_option("--role-http-address", options->role_http_address,
                 "host:port of metrics and probes of the first reward server; the other reward servers, rollout "
                 "workers and learners have the ports after it, in this order (default: 127.0.0.1 and free ports)");
  up->add_option("--host", options->hosts, "Another name or address that clients use; may be repeated");
  up->add_option("--log-level", options->log_level, "debug, info, warn or error")->capture_default_str();
  up->callback([=] {
    // NCCL refuses two ranks on one GPU, and only once they form a group: again and again, at every epoch.
    if (options->device != "cpu" && learners->count() == 0) options->learners = 1;
    if (options->device != "cpu" && options->learners > 1) {
      throw CLI::ValidationError(
          "--learners",
          absl::StrCat("expected at most 1 with --device ", options->device, ", found ", options->learners,
                       ": ranks of a group need a GPU each; start them with `rlhfctl ranks`"));
    }
    *run = [=] { return Up(*options); };
  });
}

}  // namespace rlhf::cli
