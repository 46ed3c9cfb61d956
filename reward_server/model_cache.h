// The frozen models of a reward server: loaded by their digests when they are first asked for; the least recently used
// one goes.
//
// Not thread-safe: the scorer's lock guards it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "artifact/tokenizer.h"
#include "client/cpp/artifact_cache.h"
#include "model/libtorch.h"
#include "model/transformer.h"
#include "model/weights_io.h"

namespace rlhf::reward {

struct ScorerOptions {
  torch::Device device = torch::kCPU;
  torch::Dtype dtype = torch::kFloat32;
  int max_models = 8;           // loaded at once; the least recently used one goes
  int64_t batch_tokens = 8192;  // a forward pass holds at most
};

struct LoadedModel {
  std::unique_ptr<model::Transformer> model;
  std::unique_ptr<artifact::Tokenizer> tokenizer;
  std::string tokenizer_json;                // its file
  model::RewardNormalization normalization;  // a reward model's
  uint64_t last_use = 0;
};

class ModelCache {
 public:
  ModelCache(client::ArtifactCache* artifacts, const ScorerOptions& options)
      : artifacts_(artifacts), options_(options) {}

  const ScorerOptions& options() const { return options_; }
  // Of the models that Get gives from now on.
  void SetDeterministic(bool deterministic) { deterministic_ = deterministic; }
  // The artifact's model with this head; valid until the next call.
  absl::StatusOr<LoadedModel*> Get(const std::string& digest, model::HeadKind head);
  // The file tokenizer.json of an artifact, whose model need not be loaded.
  absl::StatusOr<std::string> TokenizerJson(const std::string& digest);

 private:
  absl::StatusOr<std::unique_ptr<LoadedModel>> Load(const std::string& digest, model::HeadKind head);

  client::ArtifactCache* const artifacts_;
  const ScorerOptions options_;
  std::map<std::string, std::unique_ptr<LoadedModel>> models_;  // by digest and head
  uint64_t uses_ = 0;
  bool deterministic_ = false;
};

}  // namespace rlhf::reward
