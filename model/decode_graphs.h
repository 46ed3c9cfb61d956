// Generation's step on a CUDA device as recorded graphs: one launch a step, where some hundred small kernels cost more
// to launch than to run.
//
// A graph serves batches up to its size: 1, 2, 4, 8, then multiples of 8 to 64 and of 32 to 256; the rows beyond a
// batch stand for nothing. Tokens, positions and places of the keys lie in buffers of their own, so that a graph stays
// valid while slots change hands and weights are replaced in place. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/kv_cache.h"
#include "model/transformer.h"

namespace rlhf::model {

class DecodeGraphs {
 public:
  // Null where graphs do not serve: no CUDA device, or attention that the decode kernels lack. Model and cache outlive
  // it.
  static std::unique_ptr<DecodeGraphs> Make(const Transformer& model, KvCache& cache);
  virtual ~DecodeGraphs() = default;

  // What Logits(Extend(…)) returns for one new token for each slot: [B, vocab], float32, valid until the next call.
  // Batches that no graph serves, and all of them when a recording has failed, run by Extend.
  virtual torch::Tensor Step(const std::vector<int32_t>& tokens, const std::vector<int>& slots) = 0;

  struct Counters {
    int64_t recorded = 0, replayed = 0, without = 0;  // graphs, and steps
  };
  virtual const Counters& counters() const = 0;
  // Why no graph is used any more; empty: they are.
  virtual const std::string& failure() const = 0;
};

// The size of the graph that serves a batch; 0: none does.
int64_t GraphSize(int64_t batch);

}  // namespace rlhf::model
