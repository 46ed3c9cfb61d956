#include "coordinator/coordinator_server.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/certificate_metrics.h"
#include "common/durable_file.h"
#include "common/http_endpoint.h"
#include "common/in_process_channel.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "coordinator/auth/authorizer.h"
#include "coordinator/auth/first_tokens.h"
#include "coordinator/auth/token_metrics.h"
#include "coordinator/backup.h"
#include "coordinator/data_dir_lock.h"
#include "coordinator/feedback/import_log_rows.h"
#include "coordinator/grpc_adapter/edge.h"
#include "coordinator/grpc_adapter/reward_client.h"
#include "coordinator/grpc_adapter/services.h"
#include "coordinator/jobs.h"
#include "coordinator/loop_clock.h"
#include "coordinator/metered_store.h"
#include "coordinator/metrics_export.h"
#include "coordinator/payload_retention.h"
#include "coordinator/standby.h"
#include "coordinator/store/postgres_store.h"
#include "coordinator/volume_start.h"
#include "coordinator/volume_watch.h"
#include "coordinator/web/web_server.h"

namespace rlhf::coordinator {
namespace {

constexpr int kBackgroundThreads = 2;
// Of the artifacts' volume, which may hang: each kind of work has its own, so that it holds up nobody else's.
constexpr int kTransferThreads = 2;
constexpr int kSmallFileThreads = 2;
constexpr int kArtifactWorkThreads = 2;
constexpr int kBatchThreads = 1;
constexpr int kPageThreads = 2;
constexpr int kCheckThreads = 1;
// For what a crash left between a deletion and its sweep.
constexpr absl::Duration kSweepPayloadsEvery = absl::Hours(1);
constexpr absl::Duration kSignEvery = absl::Minutes(1);
constexpr absl::Duration kStuckAfter = absl::Seconds(30);
constexpr absl::Duration kSweepStagingEvery = absl::Hours(6);
constexpr absl::Duration kTryToLeadEvery = absl::Milliseconds(250);
constexpr absl::Duration kLookAtCertificatesEvery = absl::Seconds(10);
constexpr absl::Duration kTurnEvery = absl::Milliseconds(100);
constexpr absl::Duration kWarnEvery = absl::Seconds(30);  // of a database that does not answer

class CoordinatorServerImpl final : public CoordinatorServer {
 public:
  CoordinatorServerImpl(const CoordinatorConfig& config, Clock* clock) : config_(config), clock_(clock) {}
  ~CoordinatorServerImpl() override { Shutdown(absl::ZeroDuration()); }

  absl::Status Open(const std::function<bool()>& stop);
  std::map<std::string, int> ports() const override {
    return {
        {"fleet", fleet_server_->port()}, {"api", api_server_->port()}, {"http", http_->port()}, {"web", web_->port()}};
  }
  void Shutdown(absl::Duration grace) override;
  bool store_failed() const override { return store_failed_; }
  bool lead_lost() const override { return lead_ != nullptr && lead_->lost(); }

 private:
  enum class Phase { kNoVolume, kNoDatabase, kStandby, kRecovering, kReady, kDraining };

  std::string NotReadyBecause() const {
    switch (phase_) {
      case Phase::kNoVolume:
        return "waiting for the artifacts' volume: it does not answer";
      case Phase::kNoDatabase:
        return "waiting for the database: it does not answer";
      case Phase::kStandby:
        return "standing by: another coordinator leads";
      case Phase::kRecovering:
        return "recovering state";
      case Phase::kDraining:
        return "shutting down";
      case Phase::kReady:
        break;
    }
    return "";
  }
  // The event loop answers for the process: when it has not turned over for long, nothing else matters.
  std::string StuckBecause() const {
    const absl::Duration since = clock_->Now() - absl::Nanoseconds(loop_turned_ns_.load());
    if (phase_ != Phase::kReady || since < kStuckAfter) return "";
    return absl::StrCat("the event loop has not turned over for ", absl::ToInt64Seconds(since), " s");
  }
  // On PostgreSQL: blocks until this coordinator leads.
  absl::Status Lead(const std::function<bool()>& stop);
  // Whether it leads now. A database that does not answer is no error: it is asked again.
  absl::StatusOr<bool> TryToLead();
  absl::Status OpenStores();
  void MakeManagers();
  absl::Status Recover();
  absl::Status AfterRestore();
  TlsFiles Tls(const std::string& cert_file, const std::string& key_file) const {
    return {.insecure = config_.insecure, .ca_file = config_.tls_ca, .cert_file = cert_file, .key_file = key_file};
  }
  absl::Status Listen();
  absl::Status ListenWeb();
  void StartTicks();
  // From now on the loop's own standstills count against nobody.
  void WatchLoop();
  void LookAtCertificates();
  void Every(absl::Duration period, std::function<void()> tick);
  // Runs fn on the loop and waits for it.
  absl::Status OnLoopAndWait(std::function<absl::Status()> fn);

  const CoordinatorConfig config_;
  Clock* const clock_;
  const PostgresOptions postgres_{config_.store == "sqlite" ? "" : config_.store, config_.data_dir};
  const std::map<std::string, std::string> certificates_{
      {"fleet", config_.tls_cert}, {"api", config_.api_cert}, {"ca", config_.tls_ca}};
  std::string fleet_address_ = config_.fleet_address, api_address_ = config_.api_address;
  std::atomic<Phase> phase_{Phase::kRecovering};
  std::atomic<int64_t> loop_turned_ns_{0};
  std::atomic<bool> stopped_{false}, store_failed_{false};
  std::atomic<bool> looking_at_certificates_{false};
  bool shut_down_ = false;
  absl::Duration warned_ = absl::ZeroDuration();

  // Destroyed from the last to the first: servers, then the threads that still work for calls which were given up and
  // the store's (their work names services and managers), then services, managers, and the loop, to which everybody
  // posts, at the very end.
  std::unique_ptr<DataDirLock> lock_;
  std::unique_ptr<PostgresLead> lead_;
  MetricsRegistry metrics_{"coordinator"};
  LoopClock loop_clock_{clock_};
  std::unique_ptr<EventLoop> loop_;
  OpenCalls open_calls_;
  Quotas quotas_;
  std::unique_ptr<Fleet> fleet_;
  std::unique_ptr<EventLog> events_;
  std::unique_ptr<Oversight> oversight_;
  std::unique_ptr<Artifacts> artifacts_;
  std::unique_ptr<Sampling> sampling_;
  std::unique_ptr<PayloadRetention> retention_;
  std::unique_ptr<LearnerGroups> groups_;
  std::unique_ptr<Feedback> feedback_;
  std::unique_ptr<Jobs> jobs_;
  std::unique_ptr<Logs> logs_;
  std::unique_ptr<Denials> denials_;
  std::unique_ptr<Tokens> tokens_;
  Edge edge_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<PayloadStore> payloads_;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<RewardClient> reward_;
  std::unique_ptr<Background> background_, transfers_, small_files_, artifact_work_, batches_, pages_, checks_;
  std::unique_ptr<VolumeWatch> volumes_;
  std::shared_ptr<MetricsExport> export_;
  std::unique_ptr<RpcServer> fleet_server_, api_server_;
  std::unique_ptr<HttpEndpoint> http_;
  std::unique_ptr<WebServer> web_;  // calls the API server
  std::unique_ptr<Standby> standby_;
  std::unique_ptr<OwnLines> own_lines_;
};

absl::Status CoordinatorServerImpl::Open(const std::function<bool()>& stop) {
  RLHF_ASSIGN_OR_RETURN(lock_, TakeDataDir(config_.data_dir, /*shared=*/!postgres_.uri.empty(), stop));
  RLHF_ASSIGN_OR_RETURN(http_, StartHttpEndpoint(
                                   config_.http_address, &metrics_, [this] { return NotReadyBecause(); },
                                   [this] { return StuckBecause(); }));
  prometheus::Gauge& ready =
      metrics_.Gauge("rlhf_coordinator_ready", "1 while this coordinator leads and serves; 0 while it cannot.");
  metrics_.OnCollect([this, &ready] { ready.Set(NotReadyBecause().empty() ? 1 : 0); });
  RLHF_RETURN_IF_ERROR(MakeArtifactRoot(config_.artifact_root, stop, [this] {
    phase_ = Phase::kNoVolume;
    spdlog::warn("{} (--artifact-root {})", NotReadyBecause(), config_.artifact_root);
  }));
  phase_ = Phase::kRecovering;
  if (!postgres_.uri.empty()) RLHF_RETURN_IF_ERROR(Lead(stop));
  const absl::Duration started = clock_->Now();
  RLHF_RETURN_IF_ERROR(OpenStores());
  loop_ = EventLoop::StartThread(&loop_clock_);
  background_ = Background::StartThreads(kBackgroundThreads);
  transfers_ = Background::StartThreads(kTransferThreads);
  small_files_ = Background::StartThreads(kSmallFileThreads);
  artifact_work_ = Background::StartThreads(kArtifactWorkThreads);
  batches_ = Background::StartThreads(kBatchThreads);
  pages_ = Background::StartThreads(kPageThreads);
  checks_ = Background::StartThreads(kCheckThreads);
  volumes_ = std::make_unique<VolumeWatch>(
      VolumeWatch::Folders{{"data", config_.data_dir}, {"artifacts", config_.artifact_root}}, config_.min_free_mb,
      &metrics_, &loop_clock_, [this](const VolumeTrouble& trouble) {
        loop_->Post([this, trouble] {
          jobs_->SetOutOfRoom(trouble.why, trouble.code);
          artifacts_->SetHangs(trouble.code == kDiskHangs ? trouble.why : "");
        });
      });
  RLHF_ASSIGN_OR_RETURN(tokens_, Tokens::Open(store_.get(), clock_));
  MakeManagers();
  if (!config_.audit_key_file.empty()) {
    RLHF_ASSIGN_OR_RETURN(std::shared_ptr<const Signer> signer, Signer::Open(config_.audit_key_file));
    oversight_->SetSigner(std::move(signer));
  }
  RLHF_RETURN_IF_ERROR(Recover());
  RLHF_RETURN_IF_ERROR(OnLoopAndWait([&]() -> absl::Status {
    if (!config_.bootstrap_token_file.empty()) {
      RLHF_RETURN_IF_ERROR(TakeUpBootstrapToken(tokens_.get(), oversight_.get(), store_.get(),
                                                config_.bootstrap_token_file, clock_->WallNow()));
    }
    if (config_.bootstrap_tokens.empty()) return absl::OkStatus();
    return MintFirstTokens(tokens_.get(), oversight_.get(), store_.get(), config_.bootstrap_tokens);
  }));
  RLHF_RETURN_IF_ERROR(Listen());
  RLHF_RETURN_IF_ERROR(ListenWeb());
  StartTicks();
  export_->Attach();
  if (!config_.insecure) {
    ExportCertificates(certificates_, &metrics_);  // before the first scrape that is answered "ready"
    ExportAdminExpiry(tokens_.get(), &metrics_);
  }
  const double seconds = absl::ToDoubleSeconds(clock_->Now() - started);
  metrics_.Gauge("rlhf_recovery_seconds", "How long the last start took until it served.").Set(seconds);
  phase_ = Phase::kReady;
  spdlog::info("ready after {:.2f} s: fleet on port {}, API on port {}, HTTP on port {}, pages on port {}{}", seconds,
               fleet_server_->port(), api_server_->port(), http_->port(), web_->port(),
               config_.advertise_address.empty() ? "" : absl::StrCat(", reachable as ", config_.advertise_address));
  return absl::OkStatus();
}

absl::Status CoordinatorServerImpl::Lead(const std::function<bool()>& stop) {
  while (true) {
    RLHF_ASSIGN_OR_RETURN(const bool leads, TryToLead());
    if (leads) break;
    if (standby_ == nullptr) {
      RLHF_ASSIGN_OR_RETURN(standby_, Standby::Start(config_, &metrics_, [this] { return NotReadyBecause(); }));
      fleet_address_ = standby_->fleet_address();
      api_address_ = standby_->api_address();
      spdlog::info("{}; fleet at {}, API at {}, HTTP on port {}", NotReadyBecause(), fleet_address_, api_address_,
                   http_->port());
    }
    if (stop && stop()) return absl::CancelledError("it was asked to stop while it stood by");
    absl::SleepFor(kTryToLeadEvery);
  }
  phase_ = Phase::kRecovering;
  return absl::OkStatus();
}

absl::StatusOr<bool> CoordinatorServerImpl::TryToLead() {
  absl::Status status;
  if (lead_ == nullptr) {
    absl::StatusOr<std::unique_ptr<PostgresLead>> connected = ConnectPostgres(postgres_);
    status = connected.status();
    if (connected.ok()) lead_ = *std::move(connected);
  }
  if (lead_ != nullptr) {
    const absl::StatusOr<bool> leads = lead_->Try();
    if (leads.ok()) {
      if (phase_.exchange(Phase::kStandby) == Phase::kNoDatabase) spdlog::info("the database answers");
      return *leads;
    }
    status = leads.status();
    lead_.reset();
  }
  if (!absl::IsUnavailable(status)) return status;
  if (phase_.exchange(Phase::kNoDatabase) != Phase::kNoDatabase || clock_->Now() - warned_ > kWarnEvery) {
    spdlog::warn("{}; waiting for the database, and asking again", std::string(status.message()));
    warned_ = clock_->Now();
  }
  return false;
}

absl::Status CoordinatorServerImpl::OpenStores() {
  RemoveStaleBackups(config_.data_dir);
  RLHF_ASSIGN_OR_RETURN(payloads_, OpenPayloadStore(absl::StrCat(config_.data_dir, "/payloads"), kSegmentBytes,
                                                    /*claim=*/lead_ != nullptr));
  RLHF_ASSIGN_OR_RETURN(std::unique_ptr<StateStore> rows,
                        lead_ != nullptr ? OpenPostgresStore(postgres_, lead_->epoch())
                                         : OpenSqliteStore(absl::StrCat(config_.data_dir, "/state.db")));
  store_ = WithCommitMetrics(WithPayloads(std::move(rows), payloads_.get()), &metrics_, clock_, &store_failed_);
  return RemoveReplacedLogs(store_.get(), config_.data_dir);
}

void CoordinatorServerImpl::MakeManagers() {
  reward_ = MakeGrpcRewardClient(Tls(config_.tls_cert, config_.tls_key));
  fleet_ = MakeFleet(loop_.get(), absl::Milliseconds(config_.heartbeat_ms), absl::Milliseconds(config_.lease_ms));
  events_ = MakeEventLog(store_.get(), loop_.get());
  oversight_ = MakeOversight(loop_.get(), store_.get());
  // A full volume is one again only with a quarter more (volume_watch.h): uploads alone pause no job.
  const uint64_t min_free = static_cast<uint64_t>(config_.min_free_mb) << 20;
  artifacts_ = MakeArtifacts(loop_.get(), {small_files_.get(), artifact_work_.get()}, store_.get(),
                             config_.artifact_root, min_free + min_free / 4);
  SamplingOptions sampling;
  sampling.lease = absl::Milliseconds(config_.lease_ms);
  sampling.no_progress = absl::Milliseconds(config_.no_progress_ms);
  sampling.weights_fan_out = config_.weights_fan_out;
  sampling.quotas = &quotas_;
  sampling.callers_clock = clock_;
  sampling_ = MakeSampling(loop_.get(), store_.get(), payloads_.get(), fleet_.get(), reward_.get(), sampling);
  retention_ = std::make_unique<PayloadRetention>(loop_.get(), background_.get(), store_.get(), payloads_.get());
  groups_ = MakeLearnerGroups(loop_.get(), fleet_.get(), &quotas_, clock_);
  feedback_ = MakeFeedback(loop_.get(), store_.get());
  jobs_ = MakeJobs({loop_.get(), artifact_work_.get(), store_.get(), events_.get(), sampling_.get(), groups_.get(),
                    feedback_.get(), oversight_.get(), artifacts_.get(), &quotas_, batches_.get(), retention_.get()});
  logs_ = std::make_unique<Logs>();
  own_lines_ = std::make_unique<OwnLines>(loop_.get(), logs_.get(), "coordinator");
  denials_ = std::make_unique<Denials>(loop_.get(), oversight_.get(), store_.get(), &metrics_);

  edge_.loop = loop_.get();
  edge_.background = background_.get();
  edge_.transfers = transfers_.get();
  edge_.artifact_work = artifact_work_.get();
  edge_.batches = batches_.get();
  edge_.pages = pages_.get();
  edge_.checks = checks_.get();
  edge_.store = store_.get();
  edge_.fleet = fleet_.get();
  edge_.sampling = sampling_.get();
  edge_.groups = groups_.get();
  edge_.jobs = jobs_.get();
  edge_.events = events_.get();
  edge_.feedback = feedback_.get();
  edge_.oversight = oversight_.get();
  edge_.artifacts = artifacts_.get();
  edge_.logs = logs_.get();
  edge_.tokens = tokens_.get();
  edge_.denials = denials_.get();
  edge_.metrics = &metrics_;
  edge_.open_calls = &open_calls_;
  edge_.quotas = &quotas_;
  edge_.data_dir = config_.data_dir;
  edge_.insecure = config_.insecure;
  edge_.min_free_bytes = min_free;

  MetricsSources sources;
  sources.loop = loop_.get();
  sources.jobs = jobs_.get();
  sources.sampling = sampling_.get();
  sources.fleet = fleet_.get();
  sources.oversight = oversight_.get();
  sources.events = events_.get();
  export_ = MetricsExport::Make(sources, &metrics_);
}

absl::Status CoordinatorServerImpl::OnLoopAndWait(std::function<absl::Status()> fn) {
  absl::Notification finished;
  absl::Status result;
  loop_->Post([&] {
    result = fn();
    finished.Notify();
  });
  finished.WaitForNotification();
  return result;
}

absl::Status CoordinatorServerImpl::Recover() {
  return OnLoopAndWait([this]() -> absl::Status {
    RLHF_RETURN_IF_ERROR(Annotate(oversight_->Recover(), "recovering the audit chain"));
    RLHF_RETURN_IF_ERROR(Annotate(quotas_.Recover(store_.get()), "recovering quotas"));
    RLHF_RETURN_IF_ERROR(Annotate(fleet_->Recover(store_.get()), "recovering cordoned instances"));
    RLHF_RETURN_IF_ERROR(Annotate(AfterRestore(), "after a restored backup"));
    RLHF_RETURN_IF_ERROR(Annotate(artifacts_->Recover(), "recovering artifacts"));
    RLHF_RETURN_IF_ERROR(Annotate(feedback_->Recover(), "recovering comparison sets"));
    return Annotate(jobs_->Recover(), "recovering jobs");
  });
}

absl::Status CoordinatorServerImpl::AfterRestore() {
  WriteBatch batch;
  RLHF_ASSIGN_OR_RETURN(const int jobs, BeginLineagesAfterRestore(store_.get(), config_.data_dir,
                                                                  std::random_device{}() % (1U << 24), &batch));
  if (jobs < 0) return absl::OkStatus();
  oversight_->Audit("operator", "service.restore", "service", "done", {{"new_lineages", absl::StrCat(jobs)}}, &batch);
  RLHF_RETURN_IF_ERROR(store_->CommitAndWait(std::move(batch)));
  spdlog::warn("this state is a restored backup: {} jobs begin a new lineage", jobs);
  return ForgetRestore(config_.data_dir);
}

absl::Status CoordinatorServerImpl::Listen() {
  const auto add = [this](std::unique_ptr<grpc::Service> service) {
    services_.push_back(std::move(service));
    return services_.back().get();
  };
  grpc::Service* const artifact_service = add(MakeArtifactService(edge_));
  grpc::Service* const log_service = add(MakeLogService(edge_));

  standby_.reset();  // its ports are this one's from here on
  RpcServerOptions fleet;
  fleet.address = fleet_address_;
  fleet.tls = Tls(config_.tls_cert, config_.tls_key);
  fleet.require_client_certificate = !config_.insecure;
  fleet.authorizer = MakeFleetAuthorizer(config_.trust_domain, denials_.get());
  fleet.services = {add(MakeFleetService(edge_)), add(MakeLearnerService(edge_)), artifact_service, log_service};
  fleet.metrics = &metrics_;
  fleet.receive_memory = MakeReceiveMemory(config_.receive_memory_mb);
  fleet.handshake_refused = [this](const std::string& reason) { denials_->NoteHandshake(reason); };
  RLHF_ASSIGN_OR_RETURN(fleet_server_, RpcServer::Start(fleet));

  RpcServerOptions api;
  api.address = api_address_;
  api.tls = Tls(config_.api_cert, config_.api_key);
  api.authorizer = MakeApiAuthorizer(tokens_.get(), denials_.get());
  api.services = {add(MakeJobService(edge_)),       artifact_service, add(MakeFeedbackService(edge_)),
                  add(MakeOversightService(edge_)), log_service,      add(MakeAdminService(edge_))};
  api.metrics = &metrics_;
  api.receive_memory = fleet.receive_memory;
  RLHF_ASSIGN_OR_RETURN(api_server_, RpcServer::Start(api));
  return absl::OkStatus();
}

absl::Status CoordinatorServerImpl::ListenWeb() {
  WebServerOptions web;
  web.address = config_.web_address;
  web.insecure = config_.insecure;
  web.cert_file = config_.api_cert;
  web.key_file = config_.api_key;
  web.api = InProcessChannel(*api_server_);
  web.authorizer = MakeApiAuthorizer(tokens_.get(), denials_.get());
  web.sign_in = [this](const std::string& token) { return WhoseToken(*tokens_, token, denials_.get()); };
  web.artifact_root = config_.artifact_root;
  web.clock = clock_;
  RLHF_ASSIGN_OR_RETURN(web_, WebServer::Start(std::move(web)));
  return absl::OkStatus();
}

void CoordinatorServerImpl::Every(absl::Duration period, std::function<void()> tick) {
  loop_->PostAfter(period, [this, period, tick = std::move(tick)] {
    if (stopped_) return;
    tick();
    Every(period, tick);
  });
}

void CoordinatorServerImpl::WatchLoop() {
  loop_clock_.Turn();  // it may have stood by for hours, and recovered for a minute
  prometheus::Counter& seconds = metrics_.Counter(
      "rlhf_coordinator_standstill_seconds_total",
      "Time in which the coordinator's loop stood still, and by which the deadlines of all others were put off.");
  Every(kTurnEvery, [this, &seconds] {
    const absl::Duration late = loop_clock_.Turn();
    if (late <= absl::ZeroDuration()) return;
    seconds.Increment(absl::ToDoubleSeconds(late));
    spdlog::warn(
        "this process stood still (stopped, or its machine or disk was): all deadlines are put off by {:.1f} s",
        absl::ToDoubleSeconds(late));
  });
}

void CoordinatorServerImpl::StartTicks() {
  WatchLoop();
  loop_turned_ns_ = absl::ToInt64Nanoseconds(clock_->Now());
  Every(absl::Seconds(1), [this] { loop_turned_ns_ = absl::ToInt64Nanoseconds(clock_->Now()); });
  Every(absl::Milliseconds(100), [this] { sampling_->Tick(); });
  Every(absl::Milliseconds(200), [this] { jobs_->Tick(); });
  Every(absl::Milliseconds(200), [this] { groups_->Tick(); });
  Every(absl::Milliseconds(500), [this] { fleet_->Tick(); });
  Every(absl::Seconds(1), [this] { feedback_->Tick(); });
  Every(kSignEvery, [this] { oversight_->audit().SignHead(); });
  Every(absl::Milliseconds(500), [this] { volumes_->Look(artifacts_->RootProbe()); });
  if (!config_.insecure) Every(kLookAtCertificatesEvery, [this] { LookAtCertificates(); });
  Every(kSweepPayloadsEvery, [this] { retention_->Sweep(); });
  loop_->Post([this] { artifacts_->SweepStaging(); });
  Every(kSweepStagingEvery, [this] { artifacts_->SweepStaging(); });
  loop_->Post([this] { volumes_->Look(artifacts_->RootProbe()); });
}

void CoordinatorServerImpl::LookAtCertificates() {
  if (looking_at_certificates_.exchange(true)) return;
  background_->Run([this] {
    ExportCertificates(certificates_, &metrics_);
    looking_at_certificates_ = false;
  });
}

void CoordinatorServerImpl::Shutdown(absl::Duration grace) {
  if (std::exchange(shut_down_, true)) return;
  phase_ = Phase::kDraining;
  if (fleet_server_ != nullptr) fleet_server_->SetServing(false);
  if (api_server_ != nullptr) api_server_->SetServing(false);
  open_calls_.EndAll();
  const absl::Duration deadline = clock_->Now() + grace;
  if (api_server_ != nullptr) api_server_->Shutdown(grace);
  if (fleet_server_ != nullptr) fleet_server_->Shutdown(std::max(absl::ZeroDuration(), deadline - clock_->Now()));
  web_.reset();  // waits for its calls, which ended with the API's
  stopped_ = true;
  if (export_ != nullptr) export_->Stop();
  // What was recorded since the last time is signed before the process ends.
  if (loop_ != nullptr && oversight_ != nullptr) loop_->Post([this] { oversight_->audit().SignHead(); });
  // The logic first: it is what calls the reward client.
  if (loop_ != nullptr) loop_->Stop();
  // What was written for calls that are over is answered while the threads that go on with it are there.
  if (store_ != nullptr) store_->CommitAndWait(WriteBatch()).IgnoreError();
  reward_.reset();
}

}  // namespace

absl::StatusOr<std::unique_ptr<CoordinatorServer>> CoordinatorServer::Start(const CoordinatorConfig& config,
                                                                            Clock* clock,
                                                                            const std::function<bool()>& stop) {
  auto server = std::make_unique<CoordinatorServerImpl>(config, clock);
  RLHF_RETURN_IF_ERROR(server->Open(stop));
  return server;
}

}  // namespace rlhf::coordinator
