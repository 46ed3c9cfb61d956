// Turns a ScorerSpec into scores: makes every component once, computes it, sums them by weight; and the reference
// policy's log-probabilities.
//
// Thread-safe: one request is computed at a time, and meanwhile the users' own services of others are asked.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/cpp/artifact_cache.h"
#include "reward_server/components/interface.h"
#include "reward_server/model_cache.h"
#include "rlhf/v1/reward_service.pb.h"

namespace rlhf::reward {

// Whether a server with these options can score a request at all. Unsuited (common/unsuited.h): its job is
// deterministic, models are asked for, and they are not computed with float32 on the CPU. Any thread.
absl::Status CheckSuits(const ScorerOptions& options, const v1::ScoreRequest& request);

class Scorer {
 public:
  Scorer(client::ArtifactCache* artifacts, const ScorerOptions& options) : models_(artifacts, options) {}
  // One SampleScore a sample, in order. A component that cannot be made (bad pattern, missing model) fails every sample
  // with its status.
  v1::ScoreResponse Score(const v1::ScoreRequest& request);

 private:
  // Waits for who computes, or loads a model for minutes, without standing still (common/stuck_watch.h).
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION(mu_);
  v1::ScoreResponse ScoreLocked(const v1::ScoreRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::unique_ptr<Component>> MakeComponent(const v1::RewardComponent& spec, const std::string& policy);
  // Fills the components' values, before their weights, of every sample that has not failed yet.
  void ScoreComponents(const v1::ScorerSpec& spec, const v1::ScoreRequest& request, bool gold,
                       std::vector<v1::SampleScore>* scores) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status AddReference(const v1::ScoreRequest& request, std::vector<v1::SampleScore>* scores);

  absl::Mutex mu_;  // of all below
  ModelCache models_;
  std::map<std::string, std::unique_ptr<Component>> components_;  // by tokenizer and serialised spec
};

}  // namespace rlhf::reward
