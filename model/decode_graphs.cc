#include "model/decode_graphs.h"

#include "model/device.h"

#ifdef RLHF_CUDA
#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/InferenceMode.h>
#include <c10/cuda/CUDAGuard.h>

#include "model/device_ops.h"
#include "model/rotary.h"
#include "model/transformer_parts.h"
#endif

namespace rlhf::model {

int64_t GraphSize(int64_t batch) {
  constexpr int64_t kFine = 64, kMost = 256;
  if (batch < 1 || batch > kMost) return 0;
  if (batch > kFine) return (batch + 31) / 32 * 32;
  if (batch > 8) return (batch + 7) / 8 * 8;
  int64_t size = 1;
  while (size < batch) size *= 2;
  return size;
}

#ifdef RLHF_CUDA

class RecordedDecode final : public DecodeGraphs {
 public:
  RecordedDecode(const Transformer& model, KvCache& cache) : model_(model), cache_(cache) {}

  torch::Tensor Step(const std::vector<int32_t>& tokens, const std::vector<int>& slots) override {
    const c10::InferenceMode inference;
    const auto count = static_cast<int64_t>(slots.size()), size = GraphSize(count);
    int64_t end = 0;
    for (const int slot : slots) {
      TORCH_CHECK(cache_.length(slot) < cache_.room(slot), "slot ", slot, " is full: ", cache_.length(slot), " tokens");
      end = std::max(end, cache_.length(slot) + 1);
    }
    model_.CheckPositions(end);
    if (size == 0 || !failure_.empty()) return Eager(tokens, slots);
    const c10::cuda::CUDAGuard guard(model_.device());
    // Longer sequences than before may have made new tables, and a graph reads those of its recording.
    const std::vector<const void*> tables = model_.RotaryTables(end);
    if (tables != tables_) Forget();
    tables_ = tables;
    auto found = graphs_.find(size);
    if (found == graphs_.end()) {
      auto graph = std::make_unique<Graph>();
      if (!Record(size, end, graph.get())) return Eager(tokens, slots);
      found = graphs_.emplace(size, std::move(graph)).first;
      ++counters_.recorded;
    }
    Graph& graph = *found->second;
    // Rows beyond the batch: token 0 at position 0, of length 0.
    torch::Tensor numbers =
        torch::zeros({kRows, size}, torch::TensorOptions().dtype(torch::kInt64).pinned_memory(true));
    auto* const at = numbers.data_ptr<int64_t>();
    for (int64_t i = 0; i < size; ++i) at[kPlaces * size + i] = i;
    for (int64_t i = 0; i < count; ++i) {
      const int slot = slots[static_cast<size_t>(i)];
      at[i] = tokens[static_cast<size_t>(i)];
      at[size + i] = cache_.length(slot);
      at[(kPlaces + 1) * size + i] = cache_.begin(slot);
      at[(kPlaces + 2) * size + i] = cache_.room(slot);
      at[(kPlaces + 3) * size + i] = cache_.length(slot) + 1;
    }
    graph.numbers.copy_(numbers, /*non_blocking=*/true);
    graph.graph.replay();
    ++counters_.replayed;
    for (const int slot : slots) cache_.SetLength(slot, cache_.length(slot) + 1);
    return graph.logits.narrow(0, 0, count);
  }

  const Counters& counters() const override { return counters_; }
  const std::string& failure() const override { return failure_; }

 private:
  // Rows of a graph's numbers: tokens, positions, then the places (device_ops.h).
  static constexpr int64_t kPlaces = 2, kRows = 6;
  struct Graph {
    at::cuda::CUDAGraph graph;
    torch::Tensor numbers, logits;
  };

  torch::Tensor Eager(const std::vector<int32_t>& tokens, const std::vector<int>& slots) {
    ++counters_.without;
    std::vector<std::vector<int32_t>> inputs;
    std::vector<int64_t> positions;
    for (size_t i = 0; i < slots.size(); ++i) {
      inputs.push_back({tokens[i]});
      positions.push_back(cache_.length(slots[i]));
    }
    PackedBatch batch = PackedBatch::FromSequences(inputs, model_.device());
    batch.position_ids = ToDevice(positions, model_.device());
    return model_.Logits(model_.Extend(batch, slots, cache_));
  }

  void Forget() {
    graphs_.clear();
    pool_.reset();
  }

  torch::Tensor Forward(const torch::Tensor& numbers, int64_t end) {
    return model_.Logits(
        model_.Decode(numbers[0], numbers[1], numbers.narrow(0, kPlaces, kRows - kPlaces), end, cache_));
  }

  // Of rows that stand for nothing: the cache is not touched.
  bool Record(int64_t size, int64_t end, Graph* graph) {
    graph->numbers = torch::zeros({kRows, size}, torch::TensorOptions().dtype(torch::kInt64).device(model_.device()));
    graph->numbers[kPlaces].copy_(torch::arange(size, graph->numbers.options()));
    const auto current = at::cuda::getCurrentCUDAStream(model_.device().index());
    // One for all sizes: libraries keep a workspace, and the allocator what it freed, for each stream.
    if (!side_) side_ = at::cuda::getStreamFromPool(/*isHighPriority=*/false, model_.device().index());
    const at::cuda::CUDAStream side = *side_;
    at::cuda::CUDAEvent before;
    before.record(current);
    before.block(side);
    bool capturing = false;
    try {
      const c10::cuda::CUDAStreamGuard on(side);
      Forward(graph->numbers, end);  // what libraries set up at first use must not be recorded
      side.synchronize();
      // Other threads go on allocating and copying meanwhile.
      if (!pool_) pool_ = at::cuda::graph_pool_handle();
      graph->graph.capture_begin(*pool_, cudaStreamCaptureModeThreadLocal);
      capturing = true;
      graph->logits = Forward(graph->numbers, end);
      capturing = false;
      graph->graph.capture_end();
      at::cuda::CUDAEvent after;
      after.record(side);
      after.block(current);
      return true;
    } catch (const c10::Error& e) {
      failure_ = e.what_without_backtrace();
    }
    if (capturing) {
      try {
        const c10::cuda::CUDAStreamGuard on(side);
        graph->graph.capture_end();
      } catch (const c10::Error&) {  // the recording is lost in any case
      }
    }
    Forget();
    return false;
  }

  const Transformer& model_;
  KvCache& cache_;
  std::optional<at::cuda::CUDAStream> side_;
  std::optional<at::cuda::MempoolId_t> pool_;
  std::map<int64_t, std::unique_ptr<Graph>> graphs_;
  std::vector<const void*> tables_;
  Counters counters_;
  std::string failure_;
};

std::unique_ptr<DecodeGraphs> DecodeGraphs::Make(const Transformer& model, KvCache& cache) {
  if (!HasDecodeKernel(AttentionShapeOf(model.config(), 0), model.dtype(), model.device())) return nullptr;
  return std::make_unique<RecordedDecode>(model, cache);
}

#else

std::unique_ptr<DecodeGraphs> DecodeGraphs::Make(const Transformer&, KvCache&) {
  return nullptr;
}

#endif

}  // namespace rlhf::model
