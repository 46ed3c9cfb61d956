// The rollout worker's metrics. For the generating thread; the registry may be scraped meanwhile.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/time/time.h"
#include "common/metrics.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/fleet_service.pb.h"
#include "rollout_worker/engine.h"
#include "rollout_worker/policy_loader.h"

namespace rlhf::rollout {

class WorkerMetrics {
 public:
  explicit WorkerMetrics(MetricsRegistry* registry);

  void Accepted(const v1::PromptLease& lease, absl::Time now);
  // A decoding step took so long; `progress` is what runs after it.
  void Stepped(absl::Duration took, const std::vector<v1::LeaseProgress>& progress, absl::Time now);
  void Finished(const std::vector<v1::Sample>& samples, absl::Time now);
  // Gauges, and what the engine and the loader counted since the last time: another model's engine counts from zero
  // again, the exported counters never fall.
  void Mirror(const Engine& engine, const PolicyLoader::Counters& loaded);
  void Changed(const PolicyLoader::Change& change);

 private:
  using Key = std::tuple<std::string, int64_t, int, int, int>;  // job, step, ordinal, index, attempt
  static Key KeyOf(const v1::SampleId& id, int attempt);
  void FirstToken(const Key& key, absl::Time now);

  MetricsRegistry* const registry_;
  PolicyLoader::Counters seen_loaded_;
  Engine::Counters seen_tokens_;
  std::map<Key, absl::Time> before_first_token_;
};

}  // namespace rlhf::rollout
