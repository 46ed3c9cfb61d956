// rlhf-load-generator: how much one coordinator carries, without any model.
#include <algorithm>
#include <cstdio>

#include <CLI/CLI.hpp>

#include "bench/load_generator/load_run.h"
#include "bench/load_generator/recovery_run.h"
#include "common/log.h"

namespace {

int Failed(const absl::Status& status) {
  std::fprintf(stderr, "rlhf-load-generator: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  rlhf::InitLogging("load-generator", "bench", "error", /*json=*/false);
  rlhf::bench::LoadOptions options;
  double max_p99_ms = 0, min_rate = 0, max_resident_mb = 0;
  CLI::App app("Runs a real coordinator under the load of simulated workers, reward servers and a learner.",
               "rlhf-load-generator");
  app.add_option("--workers", options.workers, "Simulated rollout workers")->capture_default_str();
  app.add_option("--reward-servers", options.reward_servers, "Simulated reward servers")->capture_default_str();
  app.add_option("--rate", options.samples_per_second, "Samples a second, over all workers")->capture_default_str();
  app.add_option("--samples-per-lease", options.samples_per_lease, "Samples a call")->capture_default_str();
  app.add_option("--response-tokens", options.response_tokens, "Tokens a sample")->capture_default_str();
  app.add_option("--samples-per-step", options.samples_per_step, "Samples a PPO step")->capture_default_str();
  app.add_option("--checkpoint-every", options.checkpoint_every, "Steps")->capture_default_str();
  app.add_option("--warmup", options.warmup_seconds, "Seconds before the window")->capture_default_str();
  app.add_option("--seconds", options.seconds, "Seconds measured")->capture_default_str();
  app.add_option("--protocol-version", options.protocol_version, "What workers say they speak; 0: this build's");
  app.add_option("--coordinator", options.coordinator, "Binary of the coordinator; default: beside this program");
  app.add_option("--dir", options.dir, "Scratch folder, kept; default: a temporary one");
  app.add_option("--evidence-dir", options.evidence_dir,
                 "Where the fleet notes what it was told, for `rlhfctl ledger --check --evidence`; default: nowhere");
  app.add_flag("--insecure", options.insecure, "Plaintext");
  app.add_flag("--leave-running", options.leave_running, "Do not cancel the job at the end; with --dir");
  app.add_flag("--limits", options.limits, "Measure disk and gRPC alone, too");
  app.add_option("--max-p99-ms", max_p99_ms, "Fail when LeasePrompts or SubmitSamples take longer; 0: never");
  app.add_option("--min-rate", min_rate, "Fail below so many samples leased or accepted a second; 0: never");
  app.add_option("--max-resident-mb", max_resident_mb, "Fail when the coordinator ever holds more memory; 0: never");
  int64_t recover = 0;
  double max_ready_seconds = 0;
  app.add_option("--recover", recover, "Fill the store with so many samples, kill the coordinator, time its start");
  app.add_option(
      "--max-ready-seconds", max_ready_seconds,
      "With --recover: fail when it answers with the job's ledger later than so long after its start; 0: never");
  CLI11_PARSE(app, argc, argv);
  if (recover > 0) {
    const auto recovered = rlhf::bench::RunRecovery(options, recover);
    if (!recovered.ok()) return Failed(recovered.status());
    std::printf("%s\n", rlhf::bench::ToJson(*recovered).c_str());
    const bool late = max_ready_seconds > 0 && recovered->answered_seconds > max_ready_seconds;
    if (late)
      std::fprintf(stderr, "rlhf-load-generator: ready after %.2f s; expected at most %.2f s\n",
                   recovered->answered_seconds, max_ready_seconds);
    return recovered->violations.empty() && !late ? 0 : 1;
  }
  const auto result = rlhf::bench::RunLoad(options);
  if (!result.ok()) return Failed(result.status());
  std::printf("%s\n", rlhf::bench::ToJson(options, *result).c_str());
  bool ok = result->violations.empty();
  for (const char* name : {"LeasePrompts", "SubmitSamples"}) {
    const auto it = result->calls.find(name);
    const bool slow = it == result->calls.end() || it->second.p99_ms > max_p99_ms;
    if (max_p99_ms > 0 && slow) ok = false;
  }
  if (std::min(result->leases_per_second, result->samples_per_second) < min_rate) ok = false;
  if (max_resident_mb > 0 && result->peak_mb > max_resident_mb) ok = false;
  return ok ? 0 : 1;
}
