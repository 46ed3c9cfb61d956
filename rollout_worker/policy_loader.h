// Brings an engine to the policy that a lease names: another model from its artifact, or newer weights of the same one
// in place.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/cpp/artifact_cache.h"
#include "rollout_worker/engine.h"
#include "rollout_worker/weight_subscriber.h"

namespace rlhf::rollout {

struct PolicyLoaderOptions {
  EngineOptions engine;
  torch::Device device = torch::kCPU;
  torch::Dtype dtype = torch::kFloat32;
  bool int8 = false;  // the projections' weights; needs float32 on the CPU
};

class PolicyLoader {
 public:
  PolicyLoader(client::ArtifactCache* artifacts, WeightSubscriber* subscriber, const PolicyLoaderOptions& options)
      : artifacts_(artifacts), subscriber_(subscriber), options_(options) {}

  // Whether `source` can be served by the loaded model without waiting for running sequences: the same job and
  // artifact; in a deterministic job the same version too, since no weights change there while a sequence runs.
  bool CanSwitchInPlace(const v1::PolicySource& source) const;
  // Whether exactly this version is loaded.
  bool Serves(const v1::PolicySource& source) const;
  // Makes the engine serve the version. Unless CanSwitchInPlace, the engine must be idle (it is replaced).
  absl::Status Switch(const v1::PolicySource& source);
  // Fetches the weights that a later Switch will ask for, so that decoding does not wait for them. From any one thread;
  // a failure is the next Switch's to report. Nothing is fetched that is there, on its way or being applied: a version
  // comes once, whatever number of leases names it.
  void Prefetch(const v1::PolicySource& source);

  Engine* engine() { return engine_.get(); }
  // How many samples to ask for before there is an engine that knows.
  int first_capacity() const { return options_.engine.kv_cache_bytes > 0 ? 1 : options_.engine.slots; }
  struct Counters {
    int64_t loads = 0;               // engines made
    int64_t bytes = 0;               // weights received, also those that nothing asked for in the end
    int64_t bytes_from_workers = 0;  // of those, what other rollout workers sent
    int64_t bytes_mapped = 0;        // of those, what was there in this host's memory
    int64_t not_mapped = 0;          // versions that should have been, and were received
  };
  Counters counters() const;
  // A change of what is served. Phases that it did without are absent.
  struct Change {
    std::optional<absl::Duration> load;   // a model, from its artifact
    std::optional<absl::Duration> fetch;  // from asking for the manifest until every tensor was there and verified
    std::optional<absl::Duration> wait;   // fetched ahead: until the engine could change
    std::optional<absl::Duration> apply;  // into the model; decoding stands still
    absl::Duration total;                 // from the first of these to the end of the last
  };
  std::vector<Change> TakeChanges() { return std::exchange(changes_, {}); }  // since the last call

 private:
  // Whether Switch reads a model: another one, or the artifact's weights after updates in place.
  bool Loads(const v1::PolicySource& source) const;
  struct Timed {
    FetchedWeights weights;
    absl::Duration asked, arrived;  // by Clock::Real
  };

  absl::Status Load(const v1::PolicySource& source);
  absl::Status LoadFrom(const std::string& dir, const v1::PolicySource& source);
  // Any thread. `held`: the digest of a version whose delta will do; empty: none.
  absl::StatusOr<Timed> Fetch(const v1::PolicySource& source, const std::string& held);
  // Those fetched ahead, also when they are still arriving, or else fetched now.
  absl::StatusOr<Timed> TakeWeights(const v1::PolicySource& source);
  // Gives the engine's model the version's weights, by a delta where that can be; fills `change` in, all but its total.
  // Returns when the first of its phases began, `start` or before.
  absl::StatusOr<absl::Duration> Update(const v1::PolicySource& source, absl::Duration start, Change* change);

  client::ArtifactCache* artifacts_;
  WeightSubscriber* subscriber_;
  PolicyLoaderOptions options_;
  std::unique_ptr<Engine> engine_;
  // What the loaded model was made from: artifact, numerics, adapters.
  static std::string MadeFrom(const v1::PolicySource& source);
  std::string job_id_, made_from_;
  std::map<std::string, int> failed_loads_;  // in a row, by what the model is made from
  int64_t loads_ = 0;
  std::vector<Change> changes_;

  mutable absl::Mutex mu_;
  int64_t bytes_ ABSL_GUARDED_BY(mu_) = 0, bytes_from_workers_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t bytes_mapped_ ABSL_GUARDED_BY(mu_) = 0, not_mapped_ ABSL_GUARDED_BY(mu_) = 0;
  v1::PolicySource served_ ABSL_GUARDED_BY(mu_);  // newest one applied
  v1::PolicySource ahead_ ABSL_GUARDED_BY(mu_);   // what weights_ are, or arriving_ says are coming
  std::optional<absl::StatusOr<Timed>> weights_ ABSL_GUARDED_BY(mu_);
  bool arriving_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<v1::PolicySource> switching_to_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rlhf::rollout
