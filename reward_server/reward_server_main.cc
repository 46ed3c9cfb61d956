// rlhf-reward-server: scores samples with frozen models and rules, and computes the reference policy's
// log-probabilities.
#include <iostream>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <CLI/CLI.hpp>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "artifact/sample_digest.h"
#include "client/cpp/artifact_cache.h"
#include "client/cpp/channel.h"
#include "client/cpp/fleet_session.h"
#include "client/cpp/log_shipper.h"
#include "client/cpp/member_flags.h"
#include "common/asks_service.h"
#include "common/certificate_metrics.h"
#include "common/end_by.h"
#include "common/host_port.h"
#include "common/http_endpoint.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/process.h"
#include "common/rpc_server.h"
#include "common/start_watch.h"
#include "common/tracing.h"
#include "model/device.h"
#include "model/libtorch.h"
#include "model/tensor_memory.h"
#include "reward_server/reward_service.h"
#include "reward_server/scorer.h"

namespace {

constexpr size_t kMostAnnounced = 1024;
constexpr absl::Duration kEndsWithin = absl::Seconds(5);  // of the grace

struct Flags : rlhf::client::MemberFlags {
  std::string address = "127.0.0.1:0", advertise_host = "127.0.0.1", cache_dir, precision = "float32";
  int batch_tokens = 8192, delay_ms = 2, grace_seconds = 25, stuck_after_seconds = 600;
};

// In each sample's own trace.
void ExportScoring(const rlhf::v1::ScoreResponse& response, absl::Time began) {
  if (!rlhf::TracingOn()) return;
  const absl::Time ended = absl::Now();
  for (const auto& score : response.scores()) {
    const std::string name = rlhf::artifact::SampleName(score.id());
    rlhf::SpanRecord span;
    span.context = rlhf::TraceOf(absl::StrCat(score.id().job_id(), "/", name));
    span.name = "score";
    span.begin = began;
    span.end = ended;
    span.attributes = {{"rlhf.job", score.id().job_id()}, {"rlhf.sample", name}};
    if (score.code() != 0) span.error = score.error();
    rlhf::ExportSpan(std::move(span));
  }
}

// One line a batch, however many of its samples failed.
void LogFailures(const rlhf::v1::ScoreResponse& response) {
  int failed = 0;
  const rlhf::v1::SampleScore* first = nullptr;
  for (const auto& score : response.scores()) {
    if (score.code() == 0) continue;
    if (++failed == 1) first = &score;
  }
  if (first == nullptr) return;
  const rlhf::LogScope scope(
      {.job_id = first->id().job_id(), .step = first->id().step(), .sample = rlhf::artifact::SampleName(first->id())});
  spdlog::warn("{} of {} samples have no score; the first: {}", failed, response.scores_size(), first->error());
}

// Scores batches and says what became of them: in metrics, spans and the log. Thread-safe.
class Scoring {
 public:
  Scoring(rlhf::reward::Scorer* scorer, rlhf::MetricsRegistry* metrics)
      : scorer_(scorer),
        batch_size_(metrics->Histogram("rlhf_reward_batch_size", "Samples scored together.",
                                       {1, 2, 4, 8, 16, 32, 64, 128, 256, 512})),
        inference_(metrics->Histogram("rlhf_reward_inference_seconds", "Time of a scoring batch.",
                                      {.001, .003, .01, .03, .1, .3, 1, 3, 10})),
        values_(
            metrics->Histogram("rlhf_reward_score", "Total scores given.", {-10, -5, -2, -1, -.5, 0, .5, 1, 2, 5, 10})),
        ok_(metrics->Counter("rlhf_reward_scored_total", "Samples scored.", {{"outcome", "ok"}})),
        failed_(metrics->Counter("rlhf_reward_scored_total", "Samples scored.", {{"outcome", "error"}})) {}

  rlhf::v1::ScoreResponse Score(const rlhf::v1::ScoreRequest& request) {
    const rlhf::LogScope scope({.job_id = request.job_id()});
    Announce(request);
    const absl::Time began = absl::Now();
    rlhf::v1::ScoreResponse response = scorer_->Score(request);
    ExportScoring(response, began);
    LogFailures(response);
    for (const auto& score : response.scores()) {
      (score.code() == 0 ? ok_ : failed_).Increment();
      if (score.code() == 0) values_.Observe(score.score().total());
    }
    return response;
  }
  void Took(int samples, absl::Duration took) {
    batch_size_.Observe(samples);
    inference_.Observe(absl::ToDoubleSeconds(took));
  }

 private:
  void Announce(const rlhf::v1::ScoreRequest& request) {
    absl::MutexLock lock(&mu_);
    if (announced_.size() >= kMostAnnounced) announced_.clear();
    if (announced_.insert(request.job_id()).second)
      spdlog::info("scoring samples of job {}: components {}", request.job_id(), request.scorer().components_size());
  }

  rlhf::reward::Scorer* const scorer_;
  prometheus::Histogram &batch_size_, &inference_, &values_;
  prometheus::Counter &ok_, &failed_;
  absl::Mutex mu_;
  std::set<std::string> announced_ ABSL_GUARDED_BY(mu_);  // jobs, of late
};

int Run(const Flags& flags) {
  rlhf::InitLogging("reward_server", flags.instance, flags.log_level, flags.log_json);
  std::optional<rlhf::EndBy> end_by;  // outlives what is closed at the end
  std::optional<rlhf::StartWatch> start(std::in_place);
  start->Next(absl::StrCat("the folder of spans (--trace-dir ", flags.trace_dir, ")"));
  const rlhf::TracingScope tracing(flags.trace_dir, "reward_server", flags.instance);
  torch::set_num_threads(flags.threads);
  rlhf::model::KeepTensorMemory();
  rlhf::MetricsRegistry metrics("reward_server");
  start->Next("the certificates (--tls-ca, --tls-cert, --tls-key)");
  rlhf::ExportFleetCertificates(flags.tls, &metrics);

  auto channel = rlhf::client::MakeChannel(rlhf::client::ToCoordinator(flags));
  if (!channel.ok()) {
    spdlog::error("{}", channel.status().ToString());
    return 1;
  }
  start->Next(absl::StrCat("the cache folder (--cache-dir ", flags.cache_dir, ")"));
  rlhf::client::ArtifactCache artifacts(flags.artifact_root, flags.cache_dir, *channel);
  rlhf::reward::ScorerOptions scorer_options;
  scorer_options.device = *rlhf::model::ParseDevice(flags.device);
  scorer_options.dtype = flags.precision == "bfloat16" ? torch::kBFloat16 : torch::kFloat32;
  scorer_options.batch_tokens = flags.batch_tokens;
  rlhf::reward::Scorer scorer(&artifacts, scorer_options);

  Scoring scoring(&scorer, &metrics);
  rlhf::reward::BatcherOptions batcher_options;
  batcher_options.batch_tokens = 2 * static_cast<int64_t>(flags.batch_tokens);
  batcher_options.delay = absl::Milliseconds(flags.delay_ms);
  batcher_options.stuck_after = absl::Seconds(flags.stuck_after_seconds);
  batcher_options.asking_threads = rlhf::kMostServicesAsked;
  rlhf::reward::Batcher batcher([&](const rlhf::v1::ScoreRequest& request) { return scoring.Score(request); },
                                batcher_options,
                                [&](int samples, absl::Duration took) { scoring.Took(samples, took); });
  metrics.OnCollect([&] {
    metrics.Gauge("rlhf_reward_queue_depth", "Scoring requests waiting.").Set(static_cast<double>(batcher.queued()));
  });
  rlhf::reward::RewardServiceAdapter service(&batcher, [&](const rlhf::v1::ScoreRequest& request) {
    return rlhf::reward::CheckSuits(scorer_options, request);
  });

  auto server = rlhf::RpcServer::Start(rlhf::client::ListenerOf(
      flags, flags.address, rlhf::reward::AuthorizeScoring(flags.trust_domain), &service, &metrics));
  if (!server.ok()) {
    spdlog::error("{}", server.status().ToString());
    return 1;
  }

  rlhf::v1::RegisterRequest identity = rlhf::client::IdentityOf(flags, rlhf::v1::ROLE_REWARD_SERVER);
  identity.set_address(rlhf::JoinHostPort(flags.advertise_host, (*server)->port()));
  std::atomic<bool> drain{false};
  rlhf::client::FleetSession::Callbacks callbacks;
  callbacks.fill_heartbeat = [&](rlhf::v1::HeartbeatRequest* request) {
    request->set_progress_counter(batcher.completed());
  };
  callbacks.on_heartbeat = [&](const rlhf::v1::HeartbeatResponse& response) {
    if (response.drain()) drain = true;
  };
  const auto session = rlhf::client::FleetSession::Start(*channel, identity, std::move(callbacks));
  const auto shipper = rlhf::client::LogShipper::Start(
      *channel, [&session] { return session->session_id(); }, &metrics);
  auto http = rlhf::StartHttpEndpoint(
      flags.http_address, &metrics,
      [&] {
        return session->session_id().empty() ? std::string("not registered with the coordinator") : std::string();
      },
      [&] { return batcher.StuckBecause(); });
  if (!http.ok()) {
    spdlog::error("{}", http.status().ToString());
    return 1;
  }
  start->Next(absl::StrCat("the file of ports (--ports-file ", flags.ports_file, ")"));
  if (!flags.ports_file.empty()) {
    const absl::Status status =
        rlhf::WritePortsFile(flags.ports_file, {{"http", (*http)->port()}, {"grpc", (*server)->port()}});
    if (!status.ok()) {
      spdlog::error("{}", status.ToString());
      return 1;
    }
  }
  start.reset();
  rlhf::WaitForTermination([&] { return drain.load() || !session->fatal().ok(); });
  if (!session->fatal().ok()) spdlog::error("{}", session->fatal().ToString());
  // A batch that computes, a user's own service and a volume that do not answer are not waited for.
  end_by.emplace(absl::Seconds(flags.grace_seconds) + kEndsWithin, session->fatal().ok() ? 0 : 1, [] {
    return std::string("scoring goes on after --grace-seconds; what has no scores is asked for elsewhere");
  });
  session->Stop();
  (*server)->Shutdown(absl::Seconds(flags.grace_seconds));
  batcher.Stop();
  shipper->Stop();
  return session->fatal().ok() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  rlhf::BeginProcess();
  Flags flags;
  CLI::App app{"Scores samples: reward models, rules, and the reference policy's log-probabilities."};
  rlhf::client::AddMemberFlags(&app, "rlhf-reward-server", &flags);
  app.add_option("--address", flags.address, "Where to serve scoring")->capture_default_str();
  app.add_option("--advertise-address", flags.advertise_host, "Host at which the coordinator reaches this process")
      ->capture_default_str();
  app.add_option("--cache-dir", flags.cache_dir, "Private folder for downloaded artifacts")->required();
  app.add_option("--precision", flags.precision, "Compute precision")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->capture_default_str();
  app.add_option("--batch-tokens", flags.batch_tokens, "Tokens a forward pass holds at most")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--batch-delay-ms", flags.delay_ms, "How long the first request waits for company")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  app.add_option("--stuck-after-seconds", flags.stuck_after_seconds,
                 "When a batch takes longer, models fetched and loaded for it included, /healthz says 503: the process "
                 "should be "
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
  // A configuration may be checked where the device is not.
  if (const auto device = rlhf::model::ParseDevice(flags.device);
      !device.ok() && !(flags.check_config && absl::IsFailedPrecondition(device.status()))) {
    std::cerr << "rlhf-reward-server: --device: " << device.status().message() << "\n";
    return 2;
  }
  return flags.check_config ? 0 : Run(flags);
}
