#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/end_by.h"
#include "common/log.h"
#include "common/process.h"
#include "common/tracing.h"
#include "coordinator/config.h"
#include "coordinator/coordinator_server.h"
#include "coordinator/volume_start.h"

namespace {

constexpr int kUsage = 2, kTryAgain = 75;
constexpr absl::Duration kEndsWithin = absl::Seconds(3);  // of the grace
constexpr absl::Duration kAnswersWithin = absl::Seconds(2);

int Run(const rlhf::coordinator::CoordinatorConfig& config) {
  rlhf::InitLogging("coordinator", absl::StrCat("coordinator-", getpid()), config.log_level, config.log_json);
  spdlog::info("{}", rlhf::VersionLine("rlhf-coordinator"));
  const rlhf::TracingScope tracing(config.trace_dir, "coordinator", "coordinator");
  auto server = rlhf::coordinator::CoordinatorServer::Start(config, rlhf::Clock::Real(),
                                                            [] { return rlhf::TakeTerminationSignal() != 0; });
  if (absl::IsCancelled(server.status())) {
    spdlog::info("stopped: {}", std::string(server.status().message()));
    return 0;
  }
  if (!server.ok()) {
    spdlog::error("cannot start: {}", std::string(server.status().message()));
    return 1;
  }
  if (!config.ports_file.empty()) {
    if (absl::Status status = rlhf::WritePortsFile(config.ports_file, (*server)->ports()); !status.ok()) {
      spdlog::error("cannot start: {}", std::string(status.message()));
      return 1;
    }
  }
  const int signal_number =
      rlhf::WaitForTermination([&server] { return (*server)->lead_lost() || (*server)->store_failed(); });
  if ((*server)->lead_lost()) {
    // Whatever an orderly end would still write or answer is the next leader's to say.
    spdlog::critical("another coordinator may lead by now: ending at once");
    spdlog::default_logger()->flush();
    _exit(kTryAgain);
  }
  // Threads that wait for a volume cannot be told to end, and would be waited for.
  const bool asked = signal_number != 0;
  const absl::Duration grace = asked ? absl::Milliseconds(config.grace_ms) : absl::ZeroDuration();
  const rlhf::EndBy end_by(grace + kEndsWithin, asked ? 0 : kTryAgain, [&config]() -> std::string {
    for (const std::string& folder : {config.artifact_root, config.data_dir}) {
      if (!rlhf::coordinator::Answers(folder, kAnswersWithin))
        return absl::StrCat("the volume of ", folder, " does not answer; what was acknowledged is on the disk");
    }
    return "";
  });
  if (!asked) {
    spdlog::critical("the state store failed; ending, so that the next start goes on from what is on the disk");
    (*server)->Shutdown(grace);
    server->reset();
    return kTryAgain;
  }
  spdlog::info("signal {}: draining", signal_number);
  (*server)->Shutdown(grace);
  server->reset();
  spdlog::info("stopped");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  rlhf::BeginProcess();
  const auto config = rlhf::coordinator::ParseConfig(std::vector<std::string>(argv + 1, argv + argc));
  if (absl::IsCancelled(config.status())) {
    std::printf("%s", std::string(config.status().message()).c_str());
    return 0;
  }
  if (!config.ok()) {
    std::fprintf(stderr, "rlhf-coordinator: %s\n", std::string(config.status().message()).c_str());
    return kUsage;
  }
  if (config->check_config) {
    std::printf("the configuration is fine\n");
    return 0;
  }
  return Run(*config);
}
