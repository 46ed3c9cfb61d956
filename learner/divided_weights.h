// The weights of a model's layers, of which each rank holds a share alone: the optimizer's masters, of which they are
// copies. A layer's are gathered when it is computed, and freed after it (Rajbhandari et al. 2020, "ZeRO", stage 3, a
// layer at a time).
//
// Every pass through the layers, forward or backward, is made by all ranks together: who has nothing to compute calls
// PassForward or PassBackward. When a gather fails the weights are zeros, the pass goes on for nothing, and status()
// says so. Not thread-safe.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "learner/collective.h"
#include "learner/gradient_buckets.h"
#include "learner/optimizer.h"
#include "learner/share.h"
#include "model/transformer.h"

namespace rlhf::learner {

class DividedWeights final : public model::LayerWeights {
 public:
  // layout: of the model's parameters, by layer; that of the optimizer and of the gradients. All outlive this.
  DividedWeights(model::Transformer* model, std::vector<Bucket> layout, const AdamW* optimizer,
                 GradientBuckets* gradients);

  // Frees the layers' weights; from here on they come from the masters of the group's ranks.
  void Divide();
  // For the passes that follow. Forgets an earlier failure.
  void Begin(Collective* collective);
  // Room for all layers' weights, not filled: the model is whole for who fills it.
  void Allocate();
  // Gathers them all, and keeps them.
  absl::Status MakeWhole(Collective* collective);
  const absl::Status& status() const { return status_; }

  void Bring(size_t layer, bool backward) override;
  void Release(size_t layer) override;
  void PassForward();
  void PassBackward();

 private:
  void Fill(size_t bucket);

  model::Transformer* const model_;
  const std::vector<Bucket> layout_;
  const AdamW* const optimizer_;
  GradientBuckets* const gradients_;
  std::vector<std::vector<size_t>> buckets_of_;  // by layer
  Collective* collective_ = nullptr;
  bool divided_ = false;
  absl::Status status_;
};

}  // namespace rlhf::learner
