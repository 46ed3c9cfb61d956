// A real coordinator with a PPO job, and a simulated fleet around it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/load_generator/coordinator_process.h"
#include "bench/load_generator/fleet_channels.h"
#include "bench/load_generator/options.h"
#include "bench/load_generator/recorder.h"
#include "bench/load_generator/simulated_learner.h"
#include "bench/load_generator/simulated_reward_server.h"
#include "bench/load_generator/simulated_worker.h"

namespace rlhf::bench {

class LoadCluster {
 public:
  // Blocks until every worker is registered. Removes its folder at the end unless options.dir names it.
  static absl::StatusOr<std::unique_ptr<LoadCluster>> Start(const LoadOptions& options);
  ~LoadCluster();

  // With options.store there are two; the first leads, until something happens to it.
  CoordinatorProcess& coordinator(int which = 0) { return *coordinators_[static_cast<size_t>(which)]; }
  // "fleet", "api", "http" of one of the two; they stay the same over its restarts.
  std::string address(int which, const std::string& listener) const { return places_[which].at(listener); }
  // Starts one of the two again; it stands by while the other leads.
  absl::Status StartAgain(int which);
  const FleetChannels& channels() const { return channels_; }
  SimulatedLearner& learner() { return *learner_; }
  Recorder& recorder() { return recorder_; }
  const std::shared_ptr<grpc::Channel>& api() const { return api_; }
  const std::string& job_id() const { return job_id_; }
  const std::string& dir() const { return dir_; }
  std::string data_dir() const { return data_dir_; }
  // A context file for rlhfctl, with the admin's token.
  absl::Status WriteContext(const std::string& path) const;
  // A few of the workers' connections.
  const std::vector<std::shared_ptr<grpc::Channel>>& some_channels() const { return some_channels_; }
  void StopFleet();
  // Kills the coordinator with SIGKILL and starts it on the same data. Stop the fleet before: ports change.
  absl::Status Restart();
  // The same on another data folder (a restored backup), and a new fleet.
  absl::Status MoveTo(const std::string& data_dir);

 private:
  explicit LoadCluster(const LoadOptions& options) : options_(options) {}
  absl::Status StartCoordinator();
  absl::Status SpawnCoordinator(int which);
  // Where clients find the coordinator, or both.
  std::string AddressOf(const std::string& listener) const;
  absl::Status StartFleet();
  int Registered();
  void OnLoop(std::function<void()> fn);

  const LoadOptions options_;
  std::string dir_, data_dir_, job_id_;
  FleetChannels channels_;
  Recorder recorder_;
  std::map<std::string, std::string> places_[2];  // with options.store
  std::unique_ptr<CoordinatorProcess> coordinators_[2];
  std::shared_ptr<grpc::Channel> api_;
  std::vector<std::unique_ptr<SimulatedRewardServer>> reward_servers_;
  std::unique_ptr<SimulatedLearner> learner_;
  std::unique_ptr<coordinator::EventLoop> loop_;
  std::vector<std::shared_ptr<grpc::Channel>> some_channels_;
  std::vector<std::unique_ptr<SimulatedWorker>> workers_;
};

}  // namespace rlhf::bench
