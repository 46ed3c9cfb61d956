// The one transformer of learner, rollout worker and reward server: every family by description (families/family.h) and
// configuration.
//
// Tensors are on the parameters' device. Packed layout: sequences are concatenated without padding into [T] token ids,
// with position ids that start at 0 in each sequence and cumulative lengths. Not thread-safe: one caller at a time.
// LibTorch's exceptions leave these functions; entry points (see guard.h) turn them into Status.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "artifact/model_config.h"
#include "model/libtorch.h"

namespace rlhf::model {

// Sequences packed without padding.
struct PackedBatch {
  torch::Tensor token_ids;       // int64 [T]
  torch::Tensor position_ids;    // int64 [T], from 0 in each sequence
  std::vector<int64_t> lengths;  // per sequence; sums to T
  static PackedBatch FromSequences(const std::vector<std::vector<int32_t>>& sequences,
                                   torch::Device device = torch::kCPU);
  torch::Tensor LastRows() const;  // int64 [sequences], into T, on the tokens' device
};

class CpuGeneration;       // cpu_generation.h
class KvCache;             // kv_cache.h
class Rotary;              // rotary.h
struct FamilyDescription;  // families/family.h
struct RotaryRows;         // rotary.h

// Low-rank adapters: y = W x + alpha / rank · B A x on every projection whose name's last part is among the targets.
struct LoraConfig {
  int64_t rank = 8;
  double alpha = 8;
  std::vector<std::string> target_modules;  // empty: every projection of attention and perceptron
};

enum class HeadKind { kLm, kScalar };  // logits over the vocabulary, or a float or a few a token ("score")

// Who holds the weights of a model's layers where the model does not (learner/divided_weights.h).
class LayerWeights {
 public:
  virtual ~LayerWeights() = default;
  // Afterwards the layer's parameters have their values, until Release. backward: it is computed again for its
  // gradients.
  virtual void Bring(size_t layer, bool backward) = 0;
  virtual void Release(size_t layer) = 0;
};

class Transformer {
 public:
  // Parameters are allocated uninitialised; use InitRandom or weights_io.h.
  ~Transformer();
  Transformer(const artifact::ModelConfig& config, HeadKind head, torch::Dtype dtype, torch::Device device);

  const artifact::ModelConfig& config() const { return config_; }
  HeadKind head() const { return head_; }
  torch::Dtype dtype() const { return dtype_; }
  torch::Device device() const { return device_; }

  // Batch-invariant numerics: every sum in a fixed order, so that a token's hidden state, logits and log-probability
  // are the same bytes whatever else is computed with it, in Hidden and in Extend, with any number of threads.
  // InvalidArgument unless float32 on the CPU.
  absl::Status SetDeterministic(bool on);
  bool deterministic() const { return deterministic_; }

  // Hidden with autograd keeps each layer's input alone and computes the layer again in backward: the same gradients
  // for less memory and the time of another forward pass. Until its backward has run, the model must live, and keep its
  // adapters and numerics as they were.
  void SetGradientCheckpointing(bool on) { gradient_checkpointing_ = on; }
  bool gradient_checkpointing() const { return gradient_checkpointing_; }

  // Hidden asks for each layer's weights before it computes the layer, and under autograd, which then needs gradient
  // checkpointing, again before the layer's backward. Null, as at first: the model holds them. Not owned; lives until
  // the last backward has run.
  void SetLayerWeights(LayerWeights* weights) { layer_weights_ = weights; }
  // Of each of named_parameters its layer; -1: of none (embeddings, final norm, head).
  std::vector<int64_t> ParameterLayers() const;

  // The projections' weights become int8, for generation and scoring without gradients; embeddings, norms, the head,
  // keys and values and adapters stay float32 (int8_linear.h). Call before the weights are set, and set them with
  // SetParameter or CopyFrom: the projections' entries among the parameters keep name, shape and type, and no data.
  // InvalidArgument unless float32 on the CPU.
  absl::Status UseInt8();
  bool int8() const { return !int8_projections_.empty(); }
  // The weights of projections that read the same input (query, key and value; gate and up) become rows of one tensor,
  // so that one product computes them where their gradients are not wanted; what trains them stays as it is. Call on a
  // float model before the weights and adapters are set. Parameters are contiguous as before, and replaced in place
  // alone, never by other memory (learner/divided_weights.h). Nothing to do for families that store them joined.
  void JoinProjections();

  // Copies a value into a parameter or adapter in place; quantizes it where that is int8. Throws c10::Error for an
  // unknown name or another shape.
  void SetParameter(const std::string& name, const torch::Tensor& value);

  // Adds adapters: A uniform in ±1/sqrt(in) from the seed (as PEFT), B zero, so that nothing changes at first.
  // InvalidArgument names a target that no projection has. Call once, before gradients are asked for.
  absl::Status AttachLora(const LoraConfig& config, uint64_t seed);
  const LoraConfig* lora() const { return lora_.get(); }
  // With the adapters off, the model is its base: the reference policy of a LoRA job.
  void SetAdaptersActive(bool on) { adapters_active_ = on; }
  // What trains and is published: all parameters; with LoRA, the adapters ("MODULE.lora_A.weight", "….lora_B.weight")
  // and the scalar head.
  const std::vector<std::pair<std::string, torch::Tensor>>& trained_parameters() const {
    return lora_ ? adapters_ : parameters_;
  }
  // A copy of named_parameters with the adapters merged into the weights they adapt.
  std::vector<std::pair<std::string, torch::Tensor>> MergedParameters() const;

  // Hugging Face names (without tied duplicates) to parameters, in a fixed order; adapters are not among them. The
  // tensors are the live parameters.
  const std::vector<std::pair<std::string, torch::Tensor>>& named_parameters() const { return parameters_; }
  torch::Tensor parameter(const std::string& name) const;  // throws c10::Error when unknown

  // N(0, initializer_range) for matrices, zeros for biases, a scale of one for norms; the scalar head with std
  // 1/sqrt(hidden+1).
  void InitRandom(uint64_t seed);

  // Training and scoring: final-norm hidden states [T, hidden], causal within each sequence. With autograd when
  // enabled. With `rows` (int64 [N], into T) of those alone [N, hidden]: what the last layer does after attention is
  // not computed of the others.
  torch::Tensor Hidden(const PackedBatch& batch, const torch::Tensor& rows = {}) const;
  // logits [N, vocab] for chosen rows of Hidden, soft-capped where the family does (float32 result when the model is
  // bf16).
  torch::Tensor Logits(const torch::Tensor& hidden_rows) const;
  // The language-model or scalar head: [vocab, hidden] or [outputs, hidden]; the embedding itself when tied.
  const torch::Tensor& head_weight() const { return head_weight_; }
  // scalar head: float32 [N]; with several outputs [N, outputs].
  torch::Tensor Scalar(const torch::Tensor& hidden_rows) const;

  // Prefill/decode over cache slots (no autograd). Appends tokens to slots: sequence i of the batch extends slot
  // slots[i] (its current length gives the first position; batch.position_ids must agree). Returns final-norm hidden
  // states of the LAST token of each sequence [B, hidden], in the model's type or in float32.
  torch::Tensor Extend(const PackedBatch& batch, const std::vector<int>& slots, KvCache& cache) const;

  // Copies trained_parameters in place (same names and shapes); used for weight updates while serving.
  void CopyFrom(const Transformer& other);

 private:
  struct Linear;
  struct Layer;
  // Attention of one layer over its joined queries, keys and values [T, heads + 2 · kv_heads, dim]: [T, heads · dim].
  using Attend = std::function<torch::Tensor(size_t layer, const torch::Tensor& qkv)>;

  torch::Tensor Embed(const torch::Tensor& token_ids, const torch::Tensor& position_ids) const;
  torch::Tensor Norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) const;
  torch::Tensor Project(const torch::Tensor& x, const std::vector<Linear>& parts) const;
  torch::Tensor ProjectBase(const torch::Tensor& x, const std::vector<Linear>& parts) const;  // without adapters
  torch::Tensor Product(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) const;
  torch::Tensor Qkv(const Layer& layer, const torch::Tensor& x, const RotaryRows* rotary) const;
  // `rows`: those that the last layer gives; undefined: all.
  torch::Tensor Run(torch::Tensor x, const RotaryRows* rotary, const RotaryRows* local, const Attend& attend,
                    const torch::Tensor& rows) const;
  torch::Tensor RunLayer(const Layer& layer, size_t l, const torch::Tensor& all, const RotaryRows* rotary,
                         const Attend& attend, const torch::Tensor& rows) const;
  torch::Tensor RunCheckpointed(size_t l, const torch::Tensor& x, const RotaryRows* rotary, const Attend& attend,
                                const torch::Tensor& rows) const;
  bool HeadIsPacked() const;  // Extend did it, and no gradient is wanted
  torch::Tensor HeadProduct(const torch::Tensor& hidden_rows) const;
  CpuGeneration* Generation() const;  // null: the plain operations generate
  // Extend's pass over sequences of one token each on a CUDA device, without a look at the cache's lengths (places: see
  // device_ops.h; `end` is beyond the highest position). Can be recorded in a CUDA graph, which reads
  // RotaryTables(end).
  torch::Tensor Decode(const torch::Tensor& token_ids, const torch::Tensor& position_ids, const torch::Tensor& places,
                       int64_t end, KvCache& cache) const;
  std::vector<const void*> RotaryTables(int64_t end) const;
  int64_t Window(size_t layer) const { return config_.windowed[layer] ? config_.sliding_window : 0; }
  void CheckPositions(int64_t longest) const;

  artifact::ModelConfig config_;
  HeadKind head_;
  torch::Dtype dtype_;
  torch::Device device_;
  bool deterministic_ = false, adapters_active_ = true, gradient_checkpointing_ = false;
  LayerWeights* layer_weights_ = nullptr;
  std::unique_ptr<FamilyDescription> family_;
  std::vector<std::pair<std::string, torch::Tensor>> parameters_, adapters_;
  std::unique_ptr<LoraConfig> lora_;
  std::unique_ptr<Rotary> rotary_, local_rotary_;          // local: of windowed layers, where they have their own
  std::map<std::string, const Linear*> int8_projections_;  // by the name of their weight
  // The parameters again, by part. Projections that read the same input are joined for each forward pass.
  std::vector<Layer> layers_;
  mutable std::unique_ptr<CpuGeneration> generation_;  // null: not needed yet
  torch::Tensor token_embedding_, position_embedding_, final_norm_weight_, final_norm_bias_, head_weight_;
  friend class CpuGeneration;
  friend class ExtendPass;
  friend class RecordedDecode;
};

}  // namespace rlhf::model
