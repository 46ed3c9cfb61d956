// A model that trains: its parameters, their summed gradients, their optimizer; and one optimizer update over a list of
// loss terms.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "learner/checkpoint.h"
#include "learner/gradient_buckets.h"
#include "learner/optimizer.h"
#include "model/weights_io.h"

namespace rlhf::learner {

class Trainable {
 public:
  Trainable(std::unique_ptr<model::Transformer> model, const v1::OptimizerSpec& spec, int64_t total_updates);

  model::Transformer& model() { return *model_; }
  const model::Transformer& model() const { return *model_; }
  AdamW& optimizer() { return optimizer_; }
  const AdamW& optimizer() const { return optimizer_; }

  // A part of the update's loss, already divided by its global denominator; called once, in order.
  using LossTerm = std::function<torch::Tensor()>;
  // Runs all terms backward and starts the sums over ranks; returns Σ of this rank's terms. Every rank calls it, also
  // with no term.
  absl::StatusOr<double> Accumulate(const std::vector<LossTerm>& terms, Collective* collective);
  // Blocks for the sums; the gradients' norm over all ranks.
  absl::StatusOr<double> FinishSums();
  void Step(double norm) { optimizer_.Step(buckets_.gradients(), norm); }

  // "PREFIX/…" to live tensors: trained parameters, moments, masters.
  void AppendState(const std::string& prefix, NamedTensors* out) const;

 private:
  std::unique_ptr<model::Transformer> model_;
  GradientBuckets buckets_;
  AdamW optimizer_;
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
// Broadcasts tensors and numbers from one rank to all.
absl::Status BroadcastState(const NamedTensors& tensors, std::vector<double>* numbers, torch::Device device, int root,
                            Collective* collective);
// Sums doubles over ranks.
absl::Status SumOverRanks(std::vector<double>* numbers, torch::Device device, Collective* collective);

}  // namespace rlhf::learner
