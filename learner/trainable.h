// A model that trains: its parameters, their summed gradients, their optimizer; and one optimizer update over a list of
// loss terms.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "learner/checkpoint.h"
#include "learner/divided_weights.h"
#include "learner/gradient_buckets.h"
#include "learner/optimizer.h"
#include "model/weights_io.h"

namespace rlhf::learner {

// Whether every rank holds a model's layers: always; between steps (learners.shard_parameters: of what a job makes); or
// never (its critic).
enum class Layers { kWhole, kDividedInSteps, kDivided };

class Trainable {
 public:
  // shard: sums of gradients and the optimizer's state are kept of a share alone (learners.shard_optimizer_state), as
  // soon as the group is known. layers: other than kWhole needs shard, gradient checkpointing and no adapters.
  Trainable(std::unique_ptr<model::Transformer> model, const v1::OptimizerSpec& spec, int64_t total_updates,
            bool shard = false, Layers layers = Layers::kWhole);

  model::Transformer& model() { return *model_; }
  const model::Transformer& model() const { return *model_; }
  AdamW& optimizer() { return optimizer_; }
  const AdamW& optimizer() const { return optimizer_; }

  bool shards() const { return shard_; }
  // Before a step: who has trained, read and received nothing yet takes its share of the group, as new; the snapshot is
  // taken, and the layers are divided.
  void BeginStep(Collective* collective);
  // After one, also after one that was reverted: all that is held between steps comes from its ranks.
  absl::Status EndStep(Collective* collective);
  // How often all ranks go forward through the layers together, for one that goes `mine` times: what it makes up with
  // PassForward.
  absl::StatusOr<size_t> Passes(size_t mine, Collective* collective) const;
  void PassForward();
  // Unavailable when weights did not come in a pass of this step: what it computed is nothing.
  absl::Status weights_status() const { return weights_ ? weights_->status() : absl::OkStatus(); }
  // Before a checkpoint is read into the state: makes room for this rank's share of the group.
  void ExpectState(const Collective* collective);
  // See AdamW::Reshare.
  absl::Status Reshare(const std::vector<int>& owners, Collective* collective);

  // A part of the update's loss, already divided by its global denominator; called once, in order.
  using LossTerm = std::function<torch::Tensor()>;
  // Runs all terms backward and starts the sums over ranks; returns Σ of this rank's terms. Every rank calls it, also
  // with no term, and any number of them.
  absl::StatusOr<double> Accumulate(const std::vector<LossTerm>& terms, Collective* collective);
  // Blocks for the sums; the gradients' norm over all ranks, the same on each.
  absl::StatusOr<double> FinishSums(Collective* collective);
  // The update; afterwards all ranks have the same parameters, whole.
  absl::Status Step(double norm, Collective* collective);

  // "PREFIX/…": trained parameters, moments, masters, with the live pieces of them that this rank holds.
  void AppendState(const std::string& prefix, State* out) const;
  // The same, every tensor whole; of shares on all ranks (AdamW::VisitState).
  absl::Status VisitState(const std::string& prefix, Collective* collective, const StateVisitor& visitor) const;

 private:
  void TakeShareOf(const Collective& collective);
  // Internal unless this rank's share is that of this group.
  absl::Status CheckShare(const Collective& collective) const;
  // The layers as they are between steps, for who fills them.
  void MakeRoom();

  const bool shard_;
  const Layers layers_;
  bool as_new_ = true;
  std::unique_ptr<model::Transformer> model_;
  std::vector<torch::Tensor> leaves_;
  std::vector<Bucket> layout_;
  GradientBuckets buckets_;
  AdamW optimizer_;
  std::unique_ptr<DividedWeights> weights_;  // null: whole
};

// Sets a freshly loaded model up as the job says: deterministic numerics, gradient checkpointing, adapters (null or
// rank 0: none).
// InvalidArgument when the model or this process cannot.
absl::Status SetUp(const v1::JobSpec& spec, const v1::LoraSpec* lora, model::Transformer* model);
// Writes the model, adapters merged, with its tokenizer from base_dir; a LoRA job's adapters also, in "adapter/".
absl::Status SaveFinished(const model::Transformer& model, const std::string& out_dir, const std::string& base_dir,
                          const std::string& base_name);
// What shapes a deterministic job's bytes beside its inputs; empty for other jobs. The threads are LibTorch's, whose
// own operations (the losses' sums, the fused optimizer) may split their work by them.
std::string NumericsOf(const v1::JobSpec& spec, int world_size);

// float32 or bfloat16, as the specification says.
torch::Dtype DtypeOf(v1::Precision precision);
// Brings the state of some trainables and numbers from the ranks that hold it, by share (OwnersOf), to all.
absl::Status SyncState(const std::vector<std::pair<std::string, Trainable*>>& parts, std::vector<double>* numbers,
                       torch::Device device, const std::vector<int>& owners, Collective* collective);
// Sums doubles over ranks.
absl::Status SumOverRanks(std::vector<double>* numbers, torch::Device device, Collective* collective);

}  // namespace rlhf::learner
