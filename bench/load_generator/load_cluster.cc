#include "bench/load_generator/load_cluster.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "bench/load_generator/simulated_job.h"
#include "client/cpp/channel.h"
#include "common/durable_file.h"
#include "common/free_port.h"
#include "common/status_util.h"

namespace rlhf::bench {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kEndlessSteps = 1'000'000;
constexpr absl::Duration kRegistered = absl::Seconds(60);
constexpr int kSomeChannels = 32;
constexpr absl::Duration kFirstReady = absl::Seconds(60);

}  // namespace

absl::StatusOr<std::unique_ptr<LoadCluster>> LoadCluster::Start(const LoadOptions& options) {
  std::unique_ptr<LoadCluster> cluster(new LoadCluster(options));
  cluster->dir_ = options.dir;
  if (options.dir.empty()) {
    cluster->dir_ = (fs::temp_directory_path() / "rlhf-load-XXXXXX").string();
    if (mkdtemp(cluster->dir_.data()) == nullptr)
      return absl::UnavailableError(absl::StrCat("cannot make ", cluster->dir_));
  }
  RLHF_RETURN_IF_ERROR(MakeDirs(cluster->dir_));
  cluster->data_dir_ = cluster->dir_ + "/data";
  RLHF_ASSIGN_OR_RETURN(cluster->channels_, FleetChannels::Make(cluster->dir_, options.insecure));
  RLHF_RETURN_IF_ERROR(cluster->StartCoordinator());
  cluster->job_id_ = options.job_id;
  if (options.job_id.empty()) {
    RLHF_ASSIGN_OR_RETURN(cluster->job_id_,
                          SubmitSimulatedJob(cluster->api_, options, cluster->dir_, "load", kEndlessSteps));
  }
  RLHF_RETURN_IF_ERROR(cluster->StartFleet());
  return cluster;
}

LoadCluster::~LoadCluster() {
  StopFleet();
  for (auto& coordinator : coordinators_) coordinator.reset();
  loop_.reset();  // runs what calls have posted
  std::error_code ignored;
  if (options_.dir.empty()) fs::remove_all(dir_, ignored);
}

absl::Status LoadCluster::SpawnCoordinator(int which) {
  CoordinatorProcess::Options options{options_.coordinator, dir_, data_dir_, channels_.coordinator()};
  if (!options_.store.empty()) {
    options.name = absl::StrCat("coordinator-", which);
    options.flags = {"--store", options_.store};
    for (const auto& [listener, address] : places_[which])
      options.flags.insert(options.flags.end(), {absl::StrCat("--", listener, "-address"), address});
  }
  coordinators_[which].reset();  // ends before the next one begins
  RLHF_ASSIGN_OR_RETURN(coordinators_[which], CoordinatorProcess::Spawn(options));
  return absl::OkStatus();
}

absl::Status LoadCluster::StartCoordinator() {
  for (auto& place : places_) {
    for (const char* listener : {"fleet", "api", "http"}) {
      if (options_.store.empty()) continue;
      // Clients know both coordinators' ports before the second one leads.
      RLHF_ASSIGN_OR_RETURN(const int port, FreeLoopbackPort());
      place[listener] = absl::StrCat("127.0.0.1:", port);
    }
  }
  RLHF_RETURN_IF_ERROR(SpawnCoordinator(0));
  RLHF_RETURN_IF_ERROR(coordinator().WaitReady(kFirstReady));
  if (!options_.store.empty()) RLHF_RETURN_IF_ERROR(SpawnCoordinator(1));
  client::ChannelOptions api;
  api.address = AddressOf("api");
  api.tls = channels_.api();
  api.bearer_token = coordinator().token("submitter");
  RLHF_ASSIGN_OR_RETURN(api_, client::MakeChannel(api));
  return absl::OkStatus();
}

absl::Status LoadCluster::StartAgain(int which) {
  return SpawnCoordinator(which);
}

std::string LoadCluster::AddressOf(const std::string& listener) const {
  if (options_.store.empty()) return coordinators_[0]->address(listener);
  return absl::StrCat(address(0, listener), ",", address(1, listener));
}

absl::Status LoadCluster::StartFleet() {
  const std::string fleet = AddressOf("fleet");
  for (int i = 0; i < options_.reward_servers; ++i) {
    RLHF_ASSIGN_OR_RETURN(auto server,
                          SimulatedRewardServer::Start(options_, absl::StrCat("reward-", i), fleet, channels_));
    reward_servers_.push_back(std::move(server));
  }
  RLHF_ASSIGN_OR_RETURN(const auto channel, channels_.Connect(fleet, "learner", "learner-0"));
  learner_ = std::make_unique<SimulatedLearner>(options_, "learner-0", channel, dir_ + "/artifacts", &recorder_);
  loop_ = coordinator::EventLoop::StartThread(Clock::Real());
  const absl::Duration period =
      absl::Seconds(static_cast<double>(options_.workers) * options_.samples_per_lease / options_.samples_per_second);
  for (int i = 0; i < options_.workers; ++i) {
    const std::string instance = absl::StrCat("worker-", i);
    RLHF_ASSIGN_OR_RETURN(const auto connection, channels_.Connect(fleet, "rollout_worker", instance));
    if (i % std::max(1, options_.workers / kSomeChannels) == 0) some_channels_.push_back(connection);
    workers_.push_back(std::make_unique<SimulatedWorker>(options_, instance, connection, loop_.get(), &recorder_));
    workers_.back()->Start(period * i / options_.workers, period);
  }
  const absl::Time deadline = absl::Now() + kRegistered;
  while (Registered() < options_.workers) {
    if (absl::Now() > deadline)
      return absl::DeadlineExceededError(absl::StrCat(Registered(), " of ", options_.workers, " workers registered"));
    absl::SleepFor(absl::Milliseconds(20));
  }
  return absl::OkStatus();
}

void LoadCluster::StopFleet() {
  if (loop_ != nullptr) {
    OnLoop([this] {
      for (const auto& worker : workers_) worker->Stop();
    });
    for (const auto& worker : workers_) worker->Drain();
  }
  if (learner_ != nullptr) learner_->Stop();
  reward_servers_.clear();
}

absl::Status LoadCluster::Restart() {
  coordinator().Signal(SIGKILL);
  coordinator().Wait();
  return StartCoordinator();
}

absl::Status LoadCluster::MoveTo(const std::string& data_dir) {
  StopFleet();
  loop_.reset();
  some_channels_.clear();
  workers_.clear();
  data_dir_ = data_dir;
  RLHF_RETURN_IF_ERROR(Restart());
  return StartFleet();
}

absl::Status LoadCluster::WriteContext(const std::string& path) const {
  nlohmann::json context = {
      {"address", AddressOf("api")}, {"ca_file", channels_.api().ca_file}, {"insecure", options_.insecure}};
  if (const std::string token = coordinators_[0]->token("admin"); !token.empty()) {
    context["token_file"] = path + ".token";
    RLHF_RETURN_IF_ERROR(WriteFileDurably(path + ".token", token));
  }
  return WriteFileDurably(path, context.dump());
}

int LoadCluster::Registered() {
  int registered = 0;
  OnLoop([&] {
    for (const auto& worker : workers_) registered += worker->registered() ? 1 : 0;
  });
  return registered;
}

void LoadCluster::OnLoop(std::function<void()> fn) {
  absl::Notification done;
  loop_->Post([&] {
    fn();
    done.Notify();
  });
  done.WaitForNotification();
}

}  // namespace rlhf::bench
