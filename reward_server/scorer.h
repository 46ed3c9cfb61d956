// Turns a ScorerSpec into scores: loads what it names once, computes every component, sums them by weight.
//
// Not thread-safe: the batcher's one thread owns it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "artifact/tokenizer.h"
#include "client/cpp/artifact_cache.h"
#include "model/libtorch.h"
#include "model/transformer.h"
#include "model/weights_io.h"
#include "reward_server/components/interface.h"
#include "rlhf/v1/reward_service.pb.h"

namespace rlhf::reward {

struct ScorerOptions {
  torch::Device device = torch::kCPU;
  torch::Dtype dtype = torch::kFloat32;
  int max_models = 8;           // loaded at once; the least recently used one goes
  int64_t batch_tokens = 8192;  // a forward pass holds at most
};

// Whether a server with these options can score a request at all. Unsuited (common/unsuited.h): its job is
// deterministic, models are asked for, and they are not computed with float32 on the CPU. Any thread.
absl::Status CheckSuits(const ScorerOptions& options, const v1::ScoreRequest& request);

class Scorer {
 public:
  Scorer(client::ArtifactCache* artifacts, const ScorerOptions& options);
  ~Scorer();
  // One SampleScore a sample, in order. A component that cannot be made (bad pattern, missing model) fails every sample
  // with its status.
  v1::ScoreResponse Score(const v1::ScoreRequest& request);

 private:
  struct Loaded;
  absl::StatusOr<Loaded*> Load(const std::string& digest, model::HeadKind head);
  absl::StatusOr<std::unique_ptr<Component>> MakeComponent(const v1::RewardComponent& spec, const std::string& policy);
  // Fills the components' values, before their weights, of every sample that has not failed yet.
  void ScoreComponents(const v1::ScorerSpec& spec, const v1::ScoreRequest& request, bool gold,
                       std::vector<v1::SampleScore>* scores);
  absl::Status AddReference(const v1::ScoreRequest& request, std::vector<v1::SampleScore>* scores);

  client::ArtifactCache* artifacts_;
  ScorerOptions options_;
  std::map<std::string, std::unique_ptr<Loaded>> models_;         // by digest and head
  std::map<std::string, std::unique_ptr<Component>> components_;  // by tokenizer and serialised spec
  uint64_t uses_ = 0;
  bool deterministic_ = false;  // of the request being scored
  friend class RewardModelScore;
};

}  // namespace rlhf::reward
