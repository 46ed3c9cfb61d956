// ranks: one learner process a GPU of this machine, in one pod.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/cluster/supervisor.h"
#include "cli/commands/commands.h"
#include "common/http_endpoint.h"
#include "common/metrics.h"
#include "common/process.h"
#include "common/status_util.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::cli {
namespace {

struct RankFlags {
  int count = 1, first_port = 7010, first_http_port = 9100, grace_seconds = 30, health_seconds = 10;
  std::string instance, device = "cuda", http_address;
  std::vector<std::string> command;
};

ProcessSpec RankOf(const RankFlags& flags, int rank) {
  ProcessSpec spec;
  spec.name = absl::StrCat(flags.instance, "-", rank);
  spec.command = flags.command;
  spec.health_port = flags.first_http_port + rank;
  const std::string device = flags.device == "cuda" ? absl::StrCat("cuda:", rank) : flags.device;
  // Given last, so that they win over the same keys before them.
  for (const std::string& flag : {absl::StrCat("--instance=", spec.name), absl::StrCat("--device=", device),
                                  absl::StrCat("--address=0.0.0.0:", flags.first_port + rank),
                                  absl::StrCat("--http-address=0.0.0.0:", flags.first_http_port + rank),
                                  absl::StrCat("--cache-dir=/cache/", rank)}) {
    spec.command.push_back(flag);
  }
  return spec;
}

int Ranks(const RankFlags& flags) {
  BeginProcess();
  Supervisor supervisor(absl::Seconds(1), absl::Seconds(30), absl::Seconds(flags.health_seconds));
  for (int rank = 0; rank < flags.count; ++rank) {
    if (const absl::Status status = supervisor.Start(RankOf(flags, rank)); !status.ok()) return Fail(Here(status));
  }
  MetricsRegistry metrics("ranks");
  std::unique_ptr<HttpEndpoint> http;
  if (!flags.http_address.empty()) {
    auto started = StartHttpEndpoint(
        flags.http_address, &metrics, [] { return std::string(); }, [&] { return supervisor.Hanging(); });
    if (!started.ok()) return Fail(started.status());
    http = *std::move(started);
  }
  WaitForTermination([&] {
    supervisor.Tick([](const std::string& name, const std::string& how) {
      std::fprintf(stderr, "rlhfctl ranks: %s ended (%s); starting it again\n", name.c_str(), how.c_str());
    });
    return !supervisor.Hopeless().empty();
  });
  const std::string hopeless = supervisor.Hopeless();
  supervisor.StopAll(absl::Seconds(flags.grace_seconds));
  return hopeless.empty() ? static_cast<int>(v1::EXIT_OK) : Fail(Here(absl::FailedPreconditionError(hopeless)));
}

}  // namespace

void AddRanksCommand(CLI::App& app, Run* run) {
  const auto flags = std::make_shared<RankFlags>();
  auto* ranks = app.add_subcommand(
      "ranks", "Run one learner process a GPU: rlhfctl ranks --count 8 --instance NAME -- rlhf-learner …");
  ranks->add_option("--count", flags->count, "Processes; rank K gets device K and ports that are K higher")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  ranks->add_option("--instance", flags->instance, "Name of the whole; process K is NAME-K")->required();
  ranks->add_option("--device", flags->device, "cuda (one each) or cpu")
      ->check(CLI::IsMember({"cuda", "cpu"}))
      ->capture_default_str();
  ranks->add_option("--first-port", flags->first_port, "Weights port of process 0")->capture_default_str();
  ranks->add_option("--first-http-port", flags->first_http_port, "Metrics port of process 0")->capture_default_str();
  ranks->add_option(
      "--http-address", flags->http_address,
      "host:port of a /healthz that says 503 while a process hangs, for the pod's probe; not given: none");
  ranks
      ->add_option("--health-seconds", flags->health_seconds,
                   "How often every process's /healthz is asked; one that says three times in a row that it hangs, or "
                   "twelve times nothing, is started again")
      ->check(CLI::Range(1, 3600))
      ->capture_default_str();
  ranks->add_option("--grace-seconds", flags->grace_seconds, "How long SIGTERM may take")->capture_default_str();
  ranks->add_option("command", flags->command, "The learner and its flags, after --")->required();
  ranks->callback([=] { *run = [=] { return Ranks(*flags); }; });
}

}  // namespace rlhf::cli
