// Continuous batching over slots: every step decodes one token for each running sequence, and a finished sequence's
// slot is refilled at once. A sequence is admitted when a slot and the memory for its keys and values at their longest
// are free, in the order of arrival: a running one never waits for memory.
//
// The samples of a prompt share its prefill, and a prompt takes the keys and values of its longest beginning that
// another prompt has had computed by the same weights; prompts that arrive together wait a step for the first of them.
// Noise is counter-based, so a sample does not depend on its slot or its batch (up to float rounding). Not thread-safe:
// one thread owns it. LibTorch's exceptions are caught here and become Status.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "artifact/tokenizer.h"
#include "model/decode_graphs.h"
#include "model/kv_cache.h"
#include "model/sampler.h"
#include "model/transformer.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/fleet_service.pb.h"
#include "rollout_worker/prefix_cache.h"

namespace rlhf::rollout {

struct EngineOptions {
  int slots = 64;      // sequences at once
  int max_tokens = 0;  // prompt and response of a slot; 0: the model's context length
  // Memory of keys and values, in bytes; 0: what all slots at their longest need, and on a GPU, where it is taken at
  // once, half of what is free there at most.
  int64_t kv_cache_bytes = 0;
  // Prompts whose keys and values are kept, while nothing else needs their memory, for prompts that begin alike; 0:
  // prompts share nothing.
  int shared_prefixes = 16;
  // Prompt tokens that a step computes beside the running sequences' tokens, so that a long prompt holds them up for a
  // part of it at a time; with nothing running, 8 times as many.
  int prefill_tokens = 512;
  // On a CUDA device, steps without a prompt are recorded and launched as one (model/decode_graphs.h).
  bool cuda_graphs = true;
  std::string worker_id;
};

class Engine {
 public:
  // Takes the model; the tokenizer gives the ids that end a text and turns tokens into text.
  Engine(std::unique_ptr<model::Transformer> model, std::unique_ptr<artifact::Tokenizer> tokenizer,
         const v1::PolicyVersion& version, const EngineOptions& options);
  ~Engine();

  // Queues a prompt's samples. InvalidArgument when the prompt cannot be encoded or leaves no room for a token in the
  // model's context; ResourceExhausted when it is this worker that is too small for it and what is to follow: its
  // max_tokens, or its whole cache for one sample's keys and values; then needs_cache_bytes (may be null) says how much
  // of that would have done, 0 where no memory would.
  absl::Status Add(const v1::PromptLease& lease, int64_t* needs_cache_bytes = nullptr);
  // Removes samples whose lease was revoked, running or waiting.
  void Drop(const v1::SampleId& id, int attempt);

  // Admits what fits, then advances every running sequence by one token, and the prompts that were admitted by a part.
  // Returns the samples that ended.
  absl::StatusOr<std::vector<v1::Sample>> Step();
  // Samples that ended and whose tokens cannot be made text, with the reason; to be handed back.
  std::vector<v1::ReturnedLease> TakeFailed() { return std::exchange(failed_, {}); }

  // Between steps: the weights were replaced in place. What prompts computed by the former ones is not shared any more,
  // and prompts that are half computed begin anew.
  void SetVersion(const v1::PolicyVersion& version);
  // The weights are the same, under another name.
  void Rename(const v1::PolicyVersion& version) { version_ = version; }
  const v1::PolicyVersion& version() const { return version_; }
  model::Transformer& model() { return *model_; }

  bool idle() const { return running_ == 0 && waiting_samples_ == 0; }
  int running() const { return running_; }
  int waiting() const { return waiting_samples_; }
  int slots() const { return options_.slots; }
  // How many samples are generated at once: by slots, and by memory at the longest that was asked for (before the
  // first, at the context's length).
  int capacity() const;
  int64_t cache_bytes() const;    // memory for keys and values
  double kv_cache_usage() const;  // share of the cache's positions that admitted sequences reserve, kept prompts aside
  std::vector<v1::LeaseProgress> Progress() const;
  struct Counters {
    int64_t prompt_tokens = 0, generated_tokens = 0;  // computed
    int64_t prefix_hits = 0, prefix_tokens = 0;       // prompts that began with another's tokens, and how many
  };
  const Counters& counters() const { return counters_; }
  const model::DecodeGraphs* decode_graphs() const { return graphs_.get(); }  // null: none are used

 private:
  struct Group;
  struct Running;
  struct Pass;
  struct Draw;
  std::vector<int> FreeSlots() const;
  bool Reserve(int slot, int64_t room);
  PrefixCache::Match FindPrefix(const std::vector<int32_t>& prompt) const;
  void TakePrefix(const Group& group);
  bool AwaitsPrefix(const Group& group, const Pass& pass) const;
  // The steps of DecodeStep, in their order.
  Pass PassOfRunning() const;
  void Admit(Pass* pass);
  torch::Tensor Compute(const Pass& pass);
  void KeepPromptLogits(const Pass& pass, const torch::Tensor& logits);
  Draw StartDraw(const Pass& pass, const torch::Tensor& logits);
  static std::vector<model::SampledToken> Tokens(const Draw& draw);
  void StartAdmitted(std::vector<Running*>* sequences, std::vector<torch::Tensor>* logits);
  void Start(Group& group, int sample, int slot);
  bool Append(Running& sequence, const model::SampledToken& token);
  absl::StatusOr<v1::Sample> Finish(Running& sequence);
  void End(Running& sequence, std::vector<v1::Sample>* finished);
  void Retire(int slot);
  void Vacate(int slot);
  absl::Status DecodeStep(std::vector<v1::Sample>* finished);

  std::unique_ptr<model::Transformer> model_;
  std::unique_ptr<artifact::Tokenizer> tokenizer_;
  v1::PolicyVersion version_;
  EngineOptions options_;
  const int max_tokens_;
  model::KvCache cache_;  // the engine's slots, then those of kept prompts
  std::unique_ptr<model::DecodeGraphs> graphs_;
  PrefixCache prefixes_;
  int64_t weights_ = 0;       // how often they were replaced
  int64_t longest_room_ = 0;  // of a sample, in positions
  std::deque<std::unique_ptr<Group>> waiting_;
  std::vector<std::unique_ptr<Running>> slots_;
  std::vector<v1::ReturnedLease> failed_;
  int running_ = 0;
  int waiting_samples_ = 0;
  Counters counters_;
};

}  // namespace rlhf::rollout
