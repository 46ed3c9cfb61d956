// rlhf-rollout-worker: holds one policy replica and generates samples for the coordinator.
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "client/cpp/artifact_cache.h"
#include "client/cpp/channel.h"
#include "client/cpp/log_shipper.h"
#include "client/cpp/member_flags.h"
#include "client/cpp/weights_stream.h"
#include "common/certificate_metrics.h"
#include "common/end_by.h"
#include "common/fleet_names.h"
#include "common/grpc_log.h"
#include "common/host_port.h"
#include "common/http_endpoint.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/process.h"
#include "common/rpc_server.h"
#include "common/shared_memory.h"
#include "common/start_watch.h"
#include "common/tracing.h"
#include "model/device.h"
#include "model/libtorch.h"
#include "rollout_worker/weight_relay.h"
#include "rollout_worker/worker.h"

namespace {

constexpr absl::Duration kEndsWithin = absl::Seconds(5);  // of the grace

struct Flags : rlhf::client::MemberFlags {
  std::string address, advertise_host = "127.0.0.1";  // of the relay of weights; no address: none
  std::string cache_dir, evidence_dir, shm_dir, precision = "float32";
  bool cuda_graphs = true;
  int slots = 64, max_tokens = 0, grace_seconds = 25, shared_prefixes = 16, prefill_tokens = 512,
      stuck_after_seconds = 600;
  uint64_t kv_cache_bytes = 0;
};

int Run(const Flags& flags) {
  rlhf::InitLogging("rollout_worker", flags.instance, flags.log_level, flags.log_json);
  std::optional<rlhf::EndBy> end_by;  // outlives what is closed at the end
  std::optional<rlhf::StartWatch> start(std::in_place);
  start->Next(absl::StrCat("the folder of spans (--trace-dir ", flags.trace_dir, ")"));
  rlhf::InstallGrpcLog();  // the other roles' servers do
  const rlhf::TracingScope tracing(flags.trace_dir, "rollout_worker", flags.instance);
  torch::set_num_threads(flags.threads);
  rlhf::MetricsRegistry metrics("rollout_worker");
  start->Next("the certificates (--tls-ca, --tls-cert, --tls-key)");
  rlhf::ExportFleetCertificates(flags.tls, &metrics);

  auto channel = rlhf::client::MakeChannel(rlhf::client::ToCoordinator(flags));
  if (!channel.ok()) {
    spdlog::error("{}", channel.status().ToString());
    return 1;
  }
  start->Next(absl::StrCat("the cache folder (--cache-dir ", flags.cache_dir, ")"));
  rlhf::client::ArtifactCache artifacts(flags.artifact_root, flags.cache_dir, *channel);
  rlhf::rollout::WeightRelay relay;
  std::unique_ptr<rlhf::RpcServer> relay_server;
  if (!flags.address.empty()) {
    auto server = rlhf::RpcServer::Start(rlhf::client::ListenerOf(
        flags, flags.address, rlhf::client::AuthorizeWeights(flags.trust_domain), &relay, &metrics));
    if (!server.ok()) {
      spdlog::error("{}", server.status().ToString());
      return 1;
    }
    relay_server = *std::move(server);
  }
  rlhf::rollout::WeightSubscriber subscriber(
      [&flags](const std::string& address) {
        rlhf::client::ChannelOptions options;
        options.address = address;
        options.tls = flags.tls;
        options.server_name = rlhf::FleetServerName("");
        return rlhf::client::MakeChannel(options);
      },
      {.relay = relay_server == nullptr ? nullptr : &relay,
       .shm_dir = rlhf::SharedMemoryDirOf(flags.shm_dir),
       .device = *rlhf::model::ParseDevice(flags.device)});
  rlhf::rollout::PolicyLoaderOptions loader_options;
  loader_options.engine.slots = flags.slots;
  loader_options.engine.max_tokens = flags.max_tokens;
  loader_options.engine.kv_cache_bytes = static_cast<int64_t>(flags.kv_cache_bytes);
  loader_options.engine.shared_prefixes = flags.shared_prefixes;
  loader_options.engine.prefill_tokens = flags.prefill_tokens;
  loader_options.engine.cuda_graphs = flags.cuda_graphs;
  loader_options.engine.worker_id = flags.instance;
  loader_options.device = *rlhf::model::ParseDevice(flags.device);
  loader_options.int8 = flags.precision == "int8";
  loader_options.dtype = flags.precision == "bfloat16" ? torch::kBFloat16 : torch::kFloat32;
  rlhf::rollout::PolicyLoader loader(&artifacts, &subscriber, loader_options);

  rlhf::v1::RegisterRequest identity = rlhf::client::IdentityOf(flags, rlhf::v1::ROLE_ROLLOUT_WORKER);
  identity.set_slots(flags.slots);
  if (relay_server != nullptr) identity.set_address(rlhf::JoinHostPort(flags.advertise_host, relay_server->port()));
  start->Next(absl::StrCat("the folder of accepted samples (--evidence-dir ", flags.evidence_dir, ")"));
  rlhf::rollout::Worker worker(*channel, identity, &loader, &metrics, flags.evidence_dir,
                               absl::Seconds(flags.stuck_after_seconds));

  worker.Start();
  const auto shipper = rlhf::client::LogShipper::Start(
      *channel, [&worker] { return worker.session_id(); }, &metrics);
  auto http = rlhf::StartHttpEndpoint(
      flags.http_address, &metrics,
      [&worker] { return worker.ready() ? std::string() : std::string("not registered with the coordinator"); },
      [&worker] { return worker.StuckBecause(); });
  if (!http.ok()) {
    spdlog::error("{}", http.status().ToString());
    return 1;
  }
  start->Next(absl::StrCat("the file of ports (--ports-file ", flags.ports_file, ")"));
  if (!flags.ports_file.empty()) {
    std::map<std::string, int> ports = {{"http", (*http)->port()}};
    if (relay_server != nullptr) ports["grpc"] = relay_server->port();
    if (const absl::Status status = rlhf::WritePortsFile(flags.ports_file, ports); !status.ok()) {
      spdlog::error("{}", status.ToString());
      return 1;
    }
  }
  start.reset();
  rlhf::WaitForTermination([&worker] { return worker.drained() || !worker.fatal().ok(); });
  if (!worker.fatal().ok()) spdlog::error("{}", worker.fatal().ToString());
  // A model or weights that come from a volume that hangs are not waited for: the leases were handed back.
  end_by.emplace(absl::Seconds(flags.grace_seconds) + kEndsWithin, worker.fatal().ok() ? 0 : 1, [] {
    return std::string("generating, loading or a folder's volume holds this process after --grace-seconds");
  });
  worker.Drain(absl::Seconds(flags.grace_seconds));
  relay.Drop();  // whoever still reads goes on elsewhere
  if (relay_server != nullptr) relay_server->Shutdown(absl::Seconds(1));
  shipper->Stop();
  return worker.fatal().ok() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  rlhf::BeginProcess();
  Flags flags;
  CLI::App app{"Generates samples for the coordinator; holds one policy replica."};
  rlhf::client::AddMemberFlags(&app, "rlhf-rollout-worker", &flags);
  app.add_option("--address", flags.address,
                 "Where to serve received weights to other rollout workers, host:port, when the coordinator says so; "
                 "not given: nowhere");
  app.add_option("--advertise-address", flags.advertise_host, "Host at which other rollout workers reach this process")
      ->capture_default_str();
  app.add_option("--shm-dir", flags.shm_dir,
                 "Folder in memory where a learner of this host and user shares its weights; not given: /dev/shm where "
                 "it is; none: take them over the network");
  app.add_option("--cache-dir", flags.cache_dir, "Private folder for downloaded artifacts")->required();
  app.add_option("--evidence-dir", flags.evidence_dir,
                 "Keep a list of the samples accepted from here, for `rlhfctl ledger --check --evidence`");
  app.add_flag("!--no-cuda-graphs", flags.cuda_graphs, "On a GPU, launch each kernel of a step by itself");
  app.add_option("--precision", flags.precision,
                 "Compute precision; int8: float32 with the projections' weights as int8, on the CPU")
      ->check(CLI::IsMember({"float32", "bfloat16", "int8"}))
      ->capture_default_str();
  app.add_option("--slots", flags.slots, "Sequences generated at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--max-tokens", flags.max_tokens, "Tokens a slot holds; 0: the model's context")
      ->check(CLI::Range(0, 1 << 20));
  app.add_option(
         "--kv-cache-bytes", flags.kv_cache_bytes,
         "Memory of keys and values, as 4GiB; sequences wait for it. 0: what all slots at their longest need, on "
         "a GPU half of what is free at most")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--shared-prefixes", flags.shared_prefixes,
                 "Prompts whose keys and values are kept for prompts that begin alike; 0: prompts share nothing")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--prefill-tokens", flags.prefill_tokens,
                 "Prompt tokens computed a step while sequences are generated: a long prompt's other parts wait")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option(
         "--stuck-after-seconds", flags.stuck_after_seconds,
         "When a decoding step, or loading a model or weights, takes longer, /healthz says 503: the process should be "
         "started again; 0: never")
      ->check(CLI::Range(0, 7 * 24 * 3600))
      ->capture_default_str();
  app.add_option("--grace-seconds", flags.grace_seconds, "How long SIGTERM may take")
      ->check(CLI::Range(0, 3600))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;  // what a supervisor takes for a command that is wrong
  }
  if (flags.precision == "int8" && flags.device != "cpu") {
    std::cerr << "rlhf-rollout-worker: --precision int8: expected --device cpu, found " << flags.device
              << "; on a GPU use bfloat16\n";
    return 2;
  }
  // A configuration may be checked where the device is not.
  if (const auto device = rlhf::model::ParseDevice(flags.device);
      !device.ok() && !(flags.check_config && absl::IsFailedPrecondition(device.status()))) {
    std::cerr << "rlhf-rollout-worker: --device: " << device.status().message() << "\n";
    return 2;
  }
  return flags.check_config ? 0 : Run(flags);
}
