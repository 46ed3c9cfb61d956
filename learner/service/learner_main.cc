// rlhf-learner: one rank. Joins the group the coordinator forms, trains, and serves committed weights to rollout
// workers.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include <prometheus/gauge.h>
#include <CLI/CLI.hpp>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/cpp/artifact_cache.h"
#include "client/cpp/channel.h"
#include "client/cpp/fleet_session.h"
#include "client/cpp/log_shipper.h"
#include "client/cpp/member_flags.h"
#include "client/cpp/weights_stream.h"
#include "common/abandoned.h"
#include "common/certificate_metrics.h"
#include "common/clock.h"
#include "common/end_by.h"
#include "common/host_port.h"
#include "common/http_endpoint.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/process.h"
#include "common/rpc_server.h"
#include "common/shared_memory.h"
#include "common/start_watch.h"
#include "common/tracing.h"
#include "common/utf8_cut.h"
#include "learner/service/coordinator_client.h"
#include "learner/service/training_run.h"
#include "learner/service/weight_publisher.h"
#include "model/device.h"
#include "model/libtorch.h"
#include "model/tensor_memory.h"

namespace {

constexpr int kTryAgain = 75;
// What a rank may need beyond a collective's timeout to leave its group: Gloo's threads are joined when theirs is over.
constexpr int kAbortMarginSeconds = 6;
// Of the grace, kept for leaving the group after what was being written.
constexpr absl::Duration kToLeave = absl::Seconds(5);
// What an idle process takes, whatever the grace.
constexpr absl::Duration kAtLeast = absl::Seconds(1);
// Beyond the grace: what is closed after the training may be on a volume that hangs.
constexpr absl::Duration kToClose = absl::Seconds(5);

struct Flags : rlhf::client::MemberFlags {
  std::string address = "127.0.0.1:0", advertise_host = "127.0.0.1", cache_dir, evidence_dir, tensorboard_dir, shm_dir;
  bool share_gpu_weights = false;
  int collective_timeout_seconds = 20, abort_seconds = 0, grace_seconds = 25, stuck_after_seconds = 600;
};

// What the heartbeat thread and the training thread share.
struct GroupState {
  absl::Mutex mu;
  std::string job_id ABSL_GUARDED_BY(mu);
  uint64_t epoch ABSL_GUARDED_BY(mu) = 0;
  // When it was told to leave the group of `epoch`, of the monotonic clock; none: not told.
  std::optional<absl::Duration> told_to_leave ABSL_GUARDED_BY(mu);
  int world_size ABSL_GUARDED_BY(mu) = 0;
  std::atomic<bool> stopping{false};

  // alone_until: when this rank was last seen at work of its own, which may take any time.
  bool Stuck(absl::Duration patience, absl::Duration alone_until) {
    absl::MutexLock lock(&mu);
    // Alone there is nobody to hang on: it leaves at its step's end, and still holds the weights.
    if (world_size < 2) return false;
    return !job_id.empty() && told_to_leave.has_value() &&
           rlhf::Clock::Real()->Now() - std::max(*told_to_leave, alone_until) > patience;
  }
};

// The training, as the session's callbacks reach it: it is made after the session. Thread-safe.
class Training {
 public:
  void Set(rlhf::learner::CoordinatorClient* coordinator, rlhf::learner::TrainingRun* run) {
    absl::MutexLock lock(&mu_);
    coordinator_ = coordinator;
    run_ = run;
  }
  // Ends what this rank waits for in its group.
  void LeaveGroup() {
    absl::MutexLock lock(&mu_);
    if (coordinator_ != nullptr) coordinator_->Cancel();
    if (run_ != nullptr) run_->AbortCollective();
  }
  void FillProgress(rlhf::v1::HeartbeatRequest* request) {
    absl::MutexLock lock(&mu_);
    if (run_ != nullptr) request->set_progress_counter(run_->progress());
  }

 private:
  absl::Mutex mu_;
  rlhf::learner::CoordinatorClient* coordinator_ ABSL_GUARDED_BY(mu_) = nullptr;
  rlhf::learner::TrainingRun* run_ ABSL_GUARDED_BY(mu_) = nullptr;
};

void TrainLoop(rlhf::learner::CoordinatorClient& coordinator, rlhf::learner::TrainingRun& run,
               rlhf::client::FleetSession& session, GroupState& state) {
  std::string left_because;
  while (!state.stopping) {
    if (!session.WaitRegistered(absl::Milliseconds(200))) continue;
    coordinator.Reset();
    if (state.stopping) return;
    auto joined = coordinator.Join(run.held_job(), run.held(), run.held_share(), left_because);
    if (!joined.ok()) {
      if (!absl::IsUnavailable(joined.status())) left_because.clear();
      absl::SleepFor(absl::Milliseconds(200));
      continue;
    }
    left_because.clear();
    if (!joined->has_assignment()) continue;
    {
      absl::MutexLock lock(&state.mu);
      state.job_id = joined->assignment().job_id();
      state.epoch = joined->assignment().epoch();
      state.world_size = joined->assignment().world_size();
      state.told_to_leave.reset();
    }
    const rlhf::LogScope scope(
        {.job_id = joined->assignment().job_id(), .group_epoch = static_cast<int64_t>(joined->assignment().epoch())});
    const absl::Status status = run.Train(joined->assignment());
    {
      absl::MutexLock lock(&state.mu);
      state.job_id.clear();
      state.epoch = 0;
    }
    if (!status.ok()) {
      spdlog::info("left the group: {}", status.ToString());
      left_because = absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message());
      left_because.resize(rlhf::Utf8Cut(left_because, 500));
      absl::SleepFor(absl::Milliseconds(100));
    }
  }
}

// Nothing of a thread that does not end can be joined or destroyed; who is started again sweeps what it left.
[[noreturn]] void GiveUp(const std::string& why) {
  spdlog::critical("{}; ending", why);
  spdlog::default_logger()->flush();
  std::_Exit(kTryAgain);
}

// Returns when the training thread has ended. A checkpoint or model that is being written is finished if the grace
// allows it, and this rank still leaves its group in order; whatever else it is at is given up.
void EndTraining(rlhf::learner::TrainingRun& run, const absl::Notification& ended,
                 const std::function<void()>& leave_group, absl::Duration deadline, absl::Duration grace) {
  const auto left = [deadline] { return std::max(absl::ZeroDuration(), deadline - rlhf::Clock::Real()->Now()); };
  const bool saved = run.AwaitSaved(left() - std::min(kToLeave, grace / 4));
  if (!saved) spdlog::warn("a checkpoint or model takes longer than --grace-seconds allows: it is given up");
  // A device that hangs may hold whoever leaves.
  {
    const rlhf::EndBy guard(std::max(left(), kAtLeast), kTryAgain,
                            [] { return std::string("this rank cannot leave its group"); });
    leave_group();
  }
  if (ended.WaitForNotificationWithTimeout(std::max(left(), kAtLeast))) return;
  GiveUp(absl::StrCat(saved ? "the running step" : "writing a checkpoint or model", " does not end within ",
                      absl::FormatDuration(grace), " (--grace-seconds)"));
}

int Run(const Flags& flags) {
  rlhf::InitLogging("learner", flags.instance, flags.log_level, flags.log_json);
  std::optional<rlhf::EndBy> end_by;  // outlives what is closed at the end
  std::optional<rlhf::StartWatch> start(std::in_place);
  start->Next(absl::StrCat("the folder of spans (--trace-dir ", flags.trace_dir, ")"));
  const rlhf::TracingScope tracing(flags.trace_dir, "learner", flags.instance);
  torch::set_num_threads(flags.threads);
  rlhf::model::KeepTensorMemory();
  rlhf::MetricsRegistry metrics("learner");
  start->Next("the certificates (--tls-ca, --tls-cert, --tls-key)");
  rlhf::ExportFleetCertificates(flags.tls, &metrics);

  rlhf::client::ChannelOptions channel_options = rlhf::client::ToCoordinator(flags);
  channel_options.max_message_bytes = 256 << 20;
  auto channel = rlhf::client::MakeChannel(channel_options);
  if (!channel.ok()) {
    spdlog::error("{}", channel.status().ToString());
    return 1;
  }
  start->Next(absl::StrCat("the cache folder (--cache-dir ", flags.cache_dir, ")"));
  rlhf::client::ArtifactCache artifacts(flags.artifact_root, flags.cache_dir, *channel);
  // A rank that is killed while it writes a checkpoint leaves it here, partial, and the next one has another name.
  const std::string work_dir = flags.cache_dir + "/work";
  const auto work = rlhf::WorkFolder::Take(work_dir);
  if (!work.ok()) {
    spdlog::error("{}", work.status().ToString());
    return 1;
  }
  if ((*work)->removed() > 0)
    spdlog::info("removed {} unfinished checkpoints and models from {}", (*work)->removed(), work_dir);

  start->Next("the folder of shared weights (--shm-dir)");
  const std::string shm_dir = rlhf::SharedMemoryDirOf(flags.shm_dir);
  if (const int removed = rlhf::RemoveStaleSharedMemory(shm_dir); removed > 0)
    spdlog::info("removed {} files of shared weights from {}: their learners are gone", removed, shm_dir);
  rlhf::learner::WeightPublisher publisher(
      shm_dir, flags.share_gpu_weights && rlhf::model::ParseDevice(flags.device)->is_cuda());
  auto server = rlhf::RpcServer::Start(rlhf::client::ListenerOf(
      flags, flags.address, rlhf::client::AuthorizeWeights(flags.trust_domain), &publisher, &metrics));
  if (!server.ok()) {
    spdlog::error("{}", server.status().ToString());
    return 1;
  }

  start->Next(absl::StrCat("the folder of step logs (--evidence-dir ", flags.evidence_dir, ")"));
  rlhf::v1::RegisterRequest identity = rlhf::client::IdentityOf(flags, rlhf::v1::ROLE_LEARNER);
  identity.set_address(rlhf::JoinHostPort(flags.advertise_host, (*server)->port()));

  GroupState state;
  std::atomic<bool> drain{false};
  Training training;
  rlhf::client::FleetSession::Callbacks callbacks;
  callbacks.fill_heartbeat = [&](rlhf::v1::HeartbeatRequest* request) {
    training.FillProgress(request);
    absl::MutexLock lock(&state.mu);
    request->set_group_job_id(state.job_id);
    request->set_group_epoch(state.epoch);
  };
  callbacks.on_heartbeat = [&](const rlhf::v1::HeartbeatResponse& response) {
    if (response.drain()) drain = true;
    if (response.group_changed()) {
      training.LeaveGroup();
      absl::MutexLock lock(&state.mu);
      if (!state.told_to_leave.has_value()) state.told_to_leave = rlhf::Clock::Real()->Now();
    }
  };
  const auto session = rlhf::client::FleetSession::Start(*channel, identity, std::move(callbacks));
  const auto shipper = rlhf::client::LogShipper::Start(
      *channel, [&session] { return session->session_id(); }, &metrics);
  rlhf::learner::CoordinatorClient coordinator(*channel, session.get());
  rlhf::learner::TrainingRunOptions options;
  options.device = *rlhf::model::ParseDevice(flags.device);
  options.advertise_host = flags.advertise_host;
  options.weights_address = identity.address();
  options.work_dir = work_dir;
  options.evidence_dir = flags.evidence_dir;
  options.tensorboard_dir = flags.tensorboard_dir;
  options.instance = flags.instance;
  options.collective_timeout = absl::Seconds(flags.collective_timeout_seconds);
  options.stuck_after = absl::Seconds(flags.stuck_after_seconds);
  rlhf::learner::TrainingRun run(&coordinator, &artifacts, &publisher, &metrics, options);
  training.Set(&coordinator, &run);
  const absl::Cleanup unset = [&training] { training.Set(nullptr, nullptr); };
  auto http = rlhf::StartHttpEndpoint(
      flags.http_address, &metrics,
      [&session] {
        return session->session_id().empty() ? std::string("not registered with the coordinator") : std::string();
      },
      [&run] { return run.StuckBecause(); });
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
  absl::Notification training_ended;
  std::thread training_thread([&] {
    TrainLoop(coordinator, run, *session, state);
    training_ended.Notify();
  });
  const int abort_seconds =
      flags.abort_seconds > 0 ? flags.abort_seconds : flags.collective_timeout_seconds + kAbortMarginSeconds;
  absl::Duration alone_until = -absl::InfiniteDuration();
  start.reset();
  rlhf::WaitForTermination([&] {
    if (run.working_alone()) alone_until = rlhf::Clock::Real()->Now();
    if (state.Stuck(absl::Seconds(abort_seconds), alone_until))
      GiveUp(absl::StrCat("this rank did not leave its group within ", abort_seconds, " s"));
    return drain.load() || !session->fatal().ok();
  });
  if (!session->fatal().ok()) spdlog::error("{}", session->fatal().ToString());
  const absl::Duration grace = absl::Seconds(flags.grace_seconds), deadline = rlhf::Clock::Real()->Now() + grace;
  end_by.emplace(grace + kToClose, session->fatal().ok() ? 0 : 1,
                 [] { return std::string("after --grace-seconds a folder's volume does not answer"); });
  state.stopping = true;
  EndTraining(
      run, training_ended, [&training] { training.LeaveGroup(); }, deadline, grace);
  training_thread.join();
  shipper->Stop();
  session->Stop();
  (*server)->Shutdown(std::max(absl::ZeroDuration(), deadline - rlhf::Clock::Real()->Now()));
  return session->fatal().ok() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  rlhf::learner::LeaveTimeoutsToUs();
  rlhf::BeginProcess();
  Flags flags;
  CLI::App app{"One learner rank: trains, and serves committed weights to rollout workers."};
  rlhf::client::AddMemberFlags(&app, "rlhf-learner", &flags);
  app.add_option("--address", flags.address, "Where to serve weights")->capture_default_str();
  app.add_option("--advertise-address", flags.advertise_host,
                 "Host at which workers and other ranks reach this process")
      ->capture_default_str();
  app.add_option(
      "--shm-dir", flags.shm_dir,
      "Folder in memory where weights are shared with rollout workers of this host and user, in at most half "
      "of what is free there; not given: /dev/shm where it is; none: only over the network");
  app.add_flag("--share-gpu-weights", flags.share_gpu_weights,
               "With --device cuda: share the newest weights with rollout workers of this host within GPU memory (CUDA "
               "IPC), in a copy beside the model");
  app.add_option("--cache-dir", flags.cache_dir, "Private folder for downloads and for staging checkpoints")
      ->required();
  app.add_option("--evidence-dir", flags.evidence_dir,
                 "Keep a log of every step trained here, for `rlhfctl ledger --check --evidence`");
  app.add_option("--tensorboard-dir", flags.tensorboard_dir,
                 "Keep the steps' metrics as TensorBoard event files, in a folder for each job; rank 0 writes");
  app.add_option("--collective-timeout-seconds", flags.collective_timeout_seconds,
                 "How long a rank waits for the others")
      ->check(CLI::Range(1, 3600))
      ->capture_default_str();
  app.add_option(
         "--abort-seconds", flags.abort_seconds,
         "How long a rank may take to leave a group that is over before its process ends with code 75; longer than a "
         "micro-batch computes; 0: 6 more than --collective-timeout-seconds")
      ->check(CLI::Range(0, 3600))
      ->capture_default_str();
  app.add_option(
         "--stuck-after-seconds", flags.stuck_after_seconds,
         "When a step's micro-batch computes longer, /healthz says 503: the process should be started again; 0: never")
      ->check(CLI::Range(0, 7 * 24 * 3600))
      ->capture_default_str();
  app.add_option("--grace-seconds", flags.grace_seconds,
                 "How long SIGTERM or a drain may take; a checkpoint that is being written is finished within it, or "
                 "else given up, and the process ends with code 75")
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
    std::cerr << "rlhf-learner: --device: " << device.status().message() << "\n";
    return 2;
  }
  return flags.check_config ? 0 : Run(flags);
}
