// Extend and Logits on the CPU without an operation of LibTorch between the products: packed weights, memory that is
// kept from step to step, and sequences divided over the threads, each of which computes its own through all layers.
//
// Activations are float32 whatever the weights are (packed_linear.h); keys and values have the model's type. In float32
// the sums are those of Hidden with `deterministic`. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/kv_cache.h"
#include "model/packed_linear.h"
#include "model/transformer.h"

namespace rlhf::model {

class CpuGeneration {
 public:
  // Whether this processor has the kernels for the model as it is now: its device, its type, its adapters.
  static bool Serves(const Transformer& model);

  // Refers to the model.
  explicit CpuGeneration(const Transformer& model);
  ~CpuGeneration();

  // See Transformer. The hidden states are float32.
  torch::Tensor Extend(const PackedBatch& batch, const std::vector<int>& slots, KvCache& cache);
  // Before the soft cap: float32 [N, vocab] of float32 [N, hidden].
  torch::Tensor HeadProduct(const torch::Tensor& hidden_rows);

  // Weights are packed anew before the next call. A change through a tensor's own operations is seen without it.
  void WeightsChanged() { stale_ = true; }

 private:
  struct Norm;
  struct Layer;
  struct Part;
  struct Pass;
  void Refresh();
  int64_t Versions() const;
  void RunPart(const Pass& pass, Part* part);
  void Attend(const Pass& pass, size_t layer, Part* part);
  std::vector<int64_t> Costs(const Pass& pass) const;
  void Append(const Pass& pass, size_t layer, const Part& part);

  const Transformer& model_;
  bool stale_ = true, adapted_ = false;
  int64_t versions_ = 0;  // of the parameters, when they were packed
  std::vector<Layer> layers_;
  std::unique_ptr<Norm> final_norm_;
  PackedLinear head_;
  double embedding_scale_ = 1;
  std::vector<Part> parts_;
};

}  // namespace rlhf::model
