#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/CPUGeneratorImpl.h>

#include "model/families/family.h"
#include "model/fused_ops.h"
#include "model/kernels/cpu_kernels.h"
#include "model/kv_cache.h"

namespace rlhf::model {
namespace {

constexpr double kInitStd = 0.02;  // transformers' initializer_range

// How packed rows map to a padded [batch, longest] grid and back; attention alone needs it.
struct Padding {
  torch::Tensor to_grid;  // int64 [batch · longest]: packed row of each cell (row 0 for padding)
  torch::Tensor to_rows;  // int64 [T]: cell of each packed row
  int64_t batch = 0, longest = 0;
  bool trivial = false;  // all sequences have one length
};

Padding MakePadding(const std::vector<int64_t>& lengths, torch::Device device) {
  Padding padding;
  padding.batch = static_cast<int64_t>(lengths.size());
  padding.longest = *std::max_element(lengths.begin(), lengths.end());
  padding.trivial = std::all_of(lengths.begin(), lengths.end(), [&](int64_t l) { return l == padding.longest; });
  if (padding.trivial) return padding;
  std::vector<int64_t> to_grid(static_cast<size_t>(padding.batch * padding.longest), 0), to_rows;
  int64_t row = 0;
  for (int64_t b = 0; b < padding.batch; ++b) {
    for (int64_t p = 0; p < lengths[b]; ++p, ++row) {
      to_grid[static_cast<size_t>(b * padding.longest + p)] = row;
      to_rows.push_back(b * padding.longest + p);
    }
  }
  padding.to_grid = torch::tensor(to_grid, torch::kInt64).to(device);
  padding.to_rows = torch::tensor(to_rows, torch::kInt64).to(device);
  return padding;
}

}  // namespace

struct Transformer::Layer {
  struct Linear {
    torch::Tensor weight, bias;
  };
  torch::Tensor norm1_weight, norm1_bias, norm2_weight, norm2_bias;
  std::vector<Linear> qkv, mlp_in;
  Linear attention_out, mlp_out;

  static torch::Tensor Join(const std::vector<Linear>& parts, bool bias) {
    if (parts.size() == 1) return bias ? parts[0].bias : parts[0].weight;
    std::vector<torch::Tensor> tensors;
    for (const Linear& part : parts) tensors.push_back(bias ? part.bias : part.weight);
    return tensors[0].defined() ? torch::cat(tensors) : torch::Tensor();
  }
};

PackedBatch PackedBatch::FromSequences(const std::vector<std::vector<int32_t>>& sequences, torch::Device device) {
  PackedBatch batch;
  size_t total = 0;
  for (const auto& sequence : sequences) total += sequence.size();
  batch.token_ids = torch::empty({static_cast<int64_t>(total)}, torch::kInt64);
  batch.position_ids = torch::empty({static_cast<int64_t>(total)}, torch::kInt64);
  int64_t* ids = batch.token_ids.data_ptr<int64_t>();
  int64_t* positions = batch.position_ids.data_ptr<int64_t>();
  for (const auto& sequence : sequences) {
    for (size_t p = 0; p < sequence.size(); ++p) {
      *ids++ = sequence[p];
      *positions++ = static_cast<int64_t>(p);
    }
    batch.lengths.push_back(static_cast<int64_t>(sequence.size()));
  }
  if (!device.is_cpu()) {
    batch.token_ids = batch.token_ids.to(device);
    batch.position_ids = batch.position_ids.to(device);
  }
  return batch;
}

Transformer::Transformer(const artifact::ModelConfig& config, HeadKind head, torch::Dtype dtype, torch::Device device)
    : config_(config),
      head_(head),
      dtype_(dtype),
      device_(device),
      family_(std::make_unique<FamilyDescription>(Describe(config, head == HeadKind::kScalar))),
      rotary_(std::make_unique<RotaryTable>()) {
  const auto options = torch::TensorOptions().dtype(dtype).device(device);
  for (const auto& parameter : family_->parameters)
    parameters_.emplace_back(parameter.name, torch::empty(parameter.shape, options));
  const auto linear = [this](const Projection& projection) {
    return Layer::Linear{parameter(projection.weight),
                         projection.bias.empty() ? torch::Tensor() : parameter(projection.bias)};
  };
  const auto optional = [this](const std::string& name) { return name.empty() ? torch::Tensor() : parameter(name); };
  for (const LayerNames& names : family_->layers) {
    Layer layer;
    layer.norm1_weight = parameter(names.norm1_weight);
    layer.norm1_bias = optional(names.norm1_bias);
    layer.norm2_weight = parameter(names.norm2_weight);
    layer.norm2_bias = optional(names.norm2_bias);
    for (const Projection& projection : names.qkv) layer.qkv.push_back(linear(projection));
    for (const Projection& projection : names.mlp_in) layer.mlp_in.push_back(linear(projection));
    layer.attention_out = linear(names.attention_out);
    layer.mlp_out = linear(names.mlp_out);
    layers_.push_back(std::move(layer));
  }
  token_embedding_ = parameter(family_->token_embedding);
  position_embedding_ = optional(family_->position_embedding);
  final_norm_weight_ = parameter(family_->final_norm_weight);
  final_norm_bias_ = optional(family_->final_norm_bias);
  head_weight_ = parameter(head == HeadKind::kScalar ? family_->scalar_head : family_->lm_head);
  if (config.rope_theta > 0)
    *rotary_ = MakeRotaryTable(config.max_position_embeddings, config.head_dim, config.rope_theta, device);
}

Transformer::~Transformer() = default;

torch::Tensor Transformer::parameter(const std::string& name) const {
  for (const auto& [known, tensor] : parameters_) {
    if (known == name) return tensor;
  }
  TORCH_CHECK(false, "the model has no parameter \"", name, "\"");
}

void Transformer::InitRandom(uint64_t seed) {
  const torch::NoGradGuard no_grad;
  auto generator = at::detail::createCPUGenerator(seed);
  using Init = FamilyDescription::Parameter::Init;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    torch::Tensor& tensor = parameters_[i].second;
    switch (family_->parameters[i].init) {
      case Init::kZero:
        tensor.zero_();
        break;
      case Init::kOne:
        tensor.fill_(1);
        break;
      case Init::kNormal:
      case Init::kScalarHead: {
        const double std = family_->parameters[i].init == Init::kNormal
                               ? kInitStd
                               : 1.0 / std::sqrt(static_cast<double>(config_.hidden_size) + 1.0);
        torch::Tensor values = torch::empty(tensor.sizes(), torch::kFloat32);
        values.normal_(0, std, generator);
        tensor.copy_(values);
        break;
      }
    }
  }
}

torch::Tensor Transformer::Embed(const torch::Tensor& token_ids, const torch::Tensor& position_ids) const {
  torch::Tensor x = torch::embedding(token_embedding_, token_ids);
  if (position_embedding_.defined()) x = x + torch::embedding(position_embedding_, position_ids);
  return x;
}

torch::Tensor Transformer::Norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) const {
  if (config_.norm == artifact::Norm::kRms) return RmsNorm(x, weight, config_.norm_eps);
  return torch::layer_norm(x, {config_.hidden_size}, weight, bias, config_.norm_eps);
}

torch::Tensor Transformer::Project(const torch::Tensor& x, const torch::Tensor& weight,
                                   const torch::Tensor& bias) const {
  if (family_->transposed) return torch::addmm(bias, x, weight);
  return bias.defined() ? torch::linear(x, weight, bias) : torch::linear(x, weight);
}

torch::Tensor Transformer::Qkv(const Layer& layer, const torch::Tensor& x, const torch::Tensor& positions) const {
  const torch::Tensor joined = Project(x, Layer::Join(layer.qkv, false), Layer::Join(layer.qkv, true));
  const torch::Tensor qkv = joined.view({x.size(0), config_.num_heads + 2 * config_.num_kv_heads, config_.head_dim});
  return config_.rope_theta > 0 ? ApplyRotary(qkv, config_.num_heads + config_.num_kv_heads, positions, *rotary_) : qkv;
}

torch::Tensor Transformer::Mlp(const Layer& layer, const torch::Tensor& x) const {
  torch::Tensor inner = Project(x, Layer::Join(layer.mlp_in, false), Layer::Join(layer.mlp_in, true));
  if (config_.gated_mlp) {
    inner = SiluMul(inner);
  } else {
    inner = torch::gelu(inner, config_.activation == artifact::Activation::kGeluNew ? "tanh" : "none");
  }
  return Project(inner, layer.mlp_out.weight, layer.mlp_out.bias);
}

torch::Tensor Transformer::Hidden(const PackedBatch& batch) const {
  const int64_t tokens = batch.token_ids.size(0);
  const int64_t heads = config_.num_heads, kv_heads = config_.num_kv_heads, dim = config_.head_dim;
  const Padding padding = MakePadding(batch.lengths, device_);
  torch::Tensor x = Embed(batch.token_ids, batch.position_ids);
  for (const Layer& layer : layers_) {
    torch::Tensor qkv = Qkv(layer, Norm(x, layer.norm1_weight, layer.norm1_bias), batch.position_ids);
    if (!padding.trivial) qkv = qkv.index_select(0, padding.to_grid);
    // [batch, all heads, longest, dim]; rows of padding are computed and dropped, and nothing real attends to them:
    // they come last.
    const torch::Tensor grid = qkv.view({padding.batch, padding.longest, heads + 2 * kv_heads, dim}).transpose(1, 2);
    const torch::Tensor q = grid.narrow(1, 0, heads);
    torch::Tensor k = grid.narrow(1, heads, kv_heads), v = grid.narrow(1, heads + kv_heads, kv_heads);
    if (kv_heads != heads) {
      k = k.repeat_interleave(heads / kv_heads, 1);
      v = v.repeat_interleave(heads / kv_heads, 1);
    }
    torch::Tensor attended = at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true)
                                 .transpose(1, 2)
                                 .reshape({-1, heads * dim});
    if (!padding.trivial) attended = attended.index_select(0, padding.to_rows);
    x = x + Project(attended, layer.attention_out.weight, layer.attention_out.bias);
    x = x + Mlp(layer, Norm(x, layer.norm2_weight, layer.norm2_bias));
  }
  TORCH_CHECK(x.size(0) == tokens, "hidden states of ", tokens, " tokens expected");
  return Norm(x, final_norm_weight_, final_norm_bias_);
}

torch::Tensor Transformer::Logits(const torch::Tensor& hidden_rows) const {
  TORCH_CHECK(head_ == HeadKind::kLm, "a model with a scalar head has no logits");
  return torch::linear(hidden_rows, head_weight_).to(torch::kFloat32);
}

torch::Tensor Transformer::Scalar(const torch::Tensor& hidden_rows) const {
  TORCH_CHECK(head_ == HeadKind::kScalar, "a model with a language-model head has no scalar");
  return torch::linear(hidden_rows, head_weight_).squeeze(-1).to(torch::kFloat32);
}

torch::Tensor Transformer::Extend(const PackedBatch& batch, const std::vector<int>& slots, KvCache& cache) const {
  const c10::InferenceMode inference;
  const int64_t heads = config_.num_heads, kv_heads = config_.num_kv_heads, dim = config_.head_dim;
  const auto sequences = static_cast<int64_t>(slots.size());
  std::vector<int64_t> last_rows, begins(slots.size());
  int64_t row = 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    begins[i] = row;
    row += batch.lengths[i];
    last_rows.push_back(row - 1);
    TORCH_CHECK(cache.length(slots[i]) + batch.lengths[i] <= cache.max_tokens(), "slot ", slots[i],
                " is full: ", cache.length(slots[i]), " tokens and ", batch.lengths[i], " more, of ",
                cache.max_tokens());
  }
  // Sequences that extend by one token attend together in one kernel; prompts one by one.
  std::vector<int> decode_slots;
  std::vector<int64_t> decode_rows, decode_lengths;
  std::vector<size_t> prefills;
  for (size_t i = 0; i < slots.size(); ++i) {
    if (batch.lengths[i] == 1) {
      decode_slots.push_back(slots[i]);
      decode_rows.push_back(begins[i]);
      decode_lengths.push_back(cache.length(slots[i]) + 1);
    } else {
      prefills.push_back(i);
    }
  }
  const bool fused = device_.is_cpu() && dtype_ == torch::kFloat32;
  std::vector<float> scratch(static_cast<size_t>(cache.max_tokens()));
  const bool only_decode = prefills.empty();
  const torch::Tensor decode_index =
      only_decode || decode_rows.empty() ? torch::Tensor() : torch::tensor(decode_rows, torch::kInt64).to(device_);

  torch::Tensor x = Embed(batch.token_ids, batch.position_ids);
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    const torch::Tensor qkv = Qkv(layer, Norm(x, layer.norm1_weight, layer.norm1_bias), batch.position_ids);
    torch::Tensor keys = cache.keys(static_cast<int>(l)), values = cache.values(static_cast<int>(l));
    for (size_t i = 0; i < slots.size(); ++i) {
      const int64_t at = cache.length(slots[i]), count = batch.lengths[i];
      if (fused && count == 1) {
        const float* source = qkv.data_ptr<float>() + (begins[i] * (heads + 2 * kv_heads) + heads) * dim;
        for (int64_t h = 0; h < kv_heads; ++h) {
          const int64_t target = ((static_cast<int64_t>(slots[i]) * kv_heads + h) * cache.max_tokens() + at) * dim;
          std::copy_n(source + h * dim, dim, keys.data_ptr<float>() + target);
          std::copy_n(source + (kv_heads + h) * dim, dim, values.data_ptr<float>() + target);
        }
        continue;
      }
      const torch::Tensor part = qkv.narrow(0, begins[i], count);
      keys[slots[i]].narrow(1, at, count).copy_(part.narrow(1, heads, kv_heads).transpose(0, 1));
      values[slots[i]].narrow(1, at, count).copy_(part.narrow(1, heads + kv_heads, kv_heads).transpose(0, 1));
    }
    torch::Tensor attended = torch::empty({x.size(0), heads * dim}, x.options());
    for (const size_t i : prefills) {
      const int64_t length = cache.length(slots[i]) + batch.lengths[i], count = batch.lengths[i];
      const torch::Tensor q = qkv.narrow(0, begins[i], count).narrow(1, 0, heads).transpose(0, 1).unsqueeze(0);
      torch::Tensor k = keys[slots[i]].narrow(1, 0, length).unsqueeze(0),
                    v = values[slots[i]].narrow(1, 0, length).unsqueeze(0);
      if (kv_heads != heads) {
        k = k.repeat_interleave(heads / kv_heads, 1);
        v = v.repeat_interleave(heads / kv_heads, 1);
      }
      torch::Tensor out;
      if (count == length) {
        out = at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true);
      } else {
        const torch::Tensor mask =
            torch::ones({count, length}, torch::TensorOptions().dtype(torch::kBool).device(device_))
                .tril(length - count);
        out = at::scaled_dot_product_attention(q, k, v, mask);
      }
      attended.narrow(0, begins[i], count).copy_(out.squeeze(0).transpose(0, 1).reshape({count, heads * dim}));
    }
    if (!decode_rows.empty()) {
      if (fused) {
        const torch::Tensor decoding = only_decode ? qkv : qkv.index_select(0, decode_index);
        const torch::Tensor q = decoding.narrow(1, 0, heads).contiguous();
        torch::Tensor out = only_decode ? attended : torch::empty({q.size(0), heads * dim}, x.options());
        kernels::DecodeAttention(q.data_ptr<float>(), keys.data_ptr<float>(), values.data_ptr<float>(),
                                 decode_slots.data(), decode_lengths.data(), q.size(0), heads, kv_heads,
                                 cache.max_tokens(), dim, scratch.data(), out.data_ptr<float>());
        if (!only_decode) attended.index_copy_(0, decode_index, out);
      } else {
        for (size_t i = 0; i < decode_rows.size(); ++i) {
          const torch::Tensor q = qkv[decode_rows[i]].narrow(0, 0, heads).view({1, heads, 1, dim});
          torch::Tensor k = keys[decode_slots[i]].narrow(1, 0, decode_lengths[i]).unsqueeze(0);
          torch::Tensor v = values[decode_slots[i]].narrow(1, 0, decode_lengths[i]).unsqueeze(0);
          if (kv_heads != heads) {
            k = k.repeat_interleave(heads / kv_heads, 1);
            v = v.repeat_interleave(heads / kv_heads, 1);
          }
          attended[decode_rows[i]].copy_(at::scaled_dot_product_attention(q, k, v).view({heads * dim}));
        }
      }
    }
    x = x + Project(attended, layer.attention_out.weight, layer.attention_out.bias);
    x = x + Mlp(layer, Norm(x, layer.norm2_weight, layer.norm2_bias));
  }
  for (size_t i = 0; i < slots.size(); ++i) cache.SetLength(slots[i], cache.length(slots[i]) + batch.lengths[i]);
  const bool all_last = x.size(0) == sequences;
  const torch::Tensor last = all_last ? x : x.index_select(0, torch::tensor(last_rows, torch::kInt64).to(device_));
  return Norm(last, final_norm_weight_, final_norm_bias_);
}

void Transformer::CopyFrom(const Transformer& other) {
  const torch::NoGradGuard no_grad;
  TORCH_CHECK(parameters_.size() == other.parameters_.size(), "models differ in their parameters");
  for (size_t i = 0; i < parameters_.size(); ++i) {
    TORCH_CHECK(parameters_[i].first == other.parameters_[i].first, "parameter ", parameters_[i].first, " meets ",
                other.parameters_[i].first);
    parameters_[i].second.copy_(other.parameters_[i].second);
  }
}

}  // namespace rlhf::model
