#include "model/cpu_generation.h"

#include <algorithm>
#include <cstring>

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "model/attention.h"
#include "model/divide.h"
#include "model/fused_ops.h"
#include "model/kernels/cpu_kernels.h"
#include "model/rotary.h"
#include "model/transformer_parts.h"

namespace rlhf::model {
namespace {

std::vector<float> Floats(const torch::Tensor& tensor) {
  if (!tensor.defined()) return {};
  const torch::Tensor wide = tensor.detach().to(torch::kFloat32).contiguous();
  return {wide.data_ptr<float>(), wide.data_ptr<float>() + wide.numel()};
}

// A row of an embedding, added to y or put there.
void TakeRow(const torch::Tensor& table, int64_t row, bool add, float* y) {
  const int64_t width = table.size(1);
  const auto take = [&](const auto* from) {
    for (int64_t i = 0; i < width; ++i) y[i] = (add ? y[i] : 0.0F) + static_cast<float>(from[i]);
  };
  if (table.scalar_type() == torch::kFloat32) {
    take(table.const_data_ptr<float>() + row * width);
  } else {
    take(table.const_data_ptr<at::BFloat16>() + row * width);
  }
}

}  // namespace

struct CpuGeneration::Norm {
  bool layer = false;
  float eps = 0;
  std::vector<float> weight, bias;

  // x, y: [rows, width]; y may be x. moments: 2 · rows.
  void Apply(const float* x, int64_t rows, float* y, std::vector<float>* moments) const {
    const auto width = static_cast<int64_t>(weight.size());
    if (!layer) return kernels::RmsNorm(x, weight.data(), eps, rows, width, y, nullptr);
    moments->resize(static_cast<size_t>(2 * rows));
    kernels::LayerNorm(x, weight.data(), bias.data(), eps, rows, width, y, moments->data());
  }
};

struct CpuGeneration::Layer {
  Norm norm1, norm2, post_attention, post_mlp, query, key;  // without weights: not there
  PackedLinear qkv, attention_out, mlp_in, mlp_out;
};

// What one call extends, by sequence and by row.
struct CpuGeneration::Pass {
  const std::vector<int>* slots = nullptr;
  std::vector<int64_t> begins, counts, lengths;  // first row, rows, and positions of the cache afterwards
  const int64_t *tokens = nullptr, *positions = nullptr;
  KvCache* cache = nullptr;
  RotaryRows rotary, local;
  float* last = nullptr;  // [sequences, hidden]
};

// Sequences that one thread computes, and its memory.
struct CpuGeneration::Part {
  size_t first = 0, end = 0;  // sequences
  int64_t row = 0, rows = 0;
  std::vector<float> x, normed, qkv, joined, attended, projected, inner, active, moments, scores;
  std::vector<kernels::CachedQuery> queries;
  PackedLinear::Scratch scratch;
};

CpuGeneration::CpuGeneration(const Transformer& model) : model_(model) {}
CpuGeneration::~CpuGeneration() = default;

bool CpuGeneration::Serves(const Transformer& model) {
  if (!model.device_.is_cpu()) return false;
  // Adapters are merged into what is packed: in float32 alone, for what they add is lost in narrower weights, and the
  // sums are then not those of Hidden.
  if (model.lora_ && model.adapters_active_ &&
      (model.dtype_ != torch::kFloat32 || model.int8() || model.deterministic_))
    return false;
  return PackedLinear::Serves(model.dtype_) && (!model.int8() || PackedLinear::Serves(torch::kInt8));
}

int64_t CpuGeneration::Versions() const {
  int64_t sum = 0;
  for (const auto* named : {&model_.parameters_, &model_.adapters_}) {
    for (const auto& [name, tensor] : *named) {
      if (!tensor.is_inference()) sum += static_cast<int64_t>(tensor._version());
    }
  }
  return sum;
}

void CpuGeneration::Refresh() {
  const int64_t versions = Versions();
  const bool adapted = model_.lora_ && model_.adapters_active_;
  if (!stale_ && versions == versions_ && adapted == adapted_) return;
  const torch::NoGradGuard no_grad;
  const auto& config = model_.config_;
  const auto norm = [&](const torch::Tensor& weight, const torch::Tensor& bias, bool rms) {
    Norm out;
    out.layer = !rms && config.norm == artifact::Norm::kLayer;
    out.eps = static_cast<float>(config.norm_eps);
    out.weight = Floats(weight);
    out.bias = Floats(bias);
    if (config.norm == artifact::Norm::kRmsOffset) {
      for (float& value : out.weight) value += 1;
    }
    return out;
  };
  const auto pack = [&](const std::vector<Transformer::Linear>& parts, PackedLinear* to) {
    std::vector<torch::Tensor> weights, biases;
    for (const auto& part : parts) {
      const torch::Tensor weight = model_.family_->transposed ? part.weight.t() : part.weight;
      const double scale = adapted ? model_.lora_->alpha / static_cast<double>(model_.lora_->rank) : 0;
      const bool merged = adapted && part.lora_a.defined();
      weights.push_back(merged ? torch::addmm(weight, part.lora_b, part.lora_a, 1, scale) : weight);
      if (part.bias.defined()) biases.push_back(part.bias);
    }
    if (parts.front().int8 != nullptr) {
      to->Pack(*parts.front().int8, biases);
    } else {
      to->Pack(weights, biases);
    }
  };
  layers_.resize(model_.layers_.size());
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Transformer::Layer& from = model_.layers_[l];
    Layer& to = layers_[l];
    to.norm1 = norm(from.norm1_weight, from.norm1_bias, false);
    to.norm2 = norm(from.norm2_weight, from.norm2_bias, false);
    to.post_attention = norm(from.post_attention_norm, {}, false);
    to.post_mlp = norm(from.post_mlp_norm, {}, false);
    to.query = norm(from.query_norm, {}, true);
    to.key = norm(from.key_norm, {}, true);
    pack(from.qkv, &to.qkv);
    pack(from.attention_out, &to.attention_out);
    pack(from.mlp_in, &to.mlp_in);
    pack(from.mlp_out, &to.mlp_out);
  }
  final_norm_ = std::make_unique<Norm>(norm(model_.final_norm_weight_, model_.final_norm_bias_, false));
  head_.Pack({model_.head_weight_}, {});
  embedding_scale_ = torch::tensor(config.embedding_scale, torch::kFloat64).to(model_.dtype_).item<double>();
  stale_ = false;
  versions_ = versions;
  adapted_ = adapted;
}

torch::Tensor CpuGeneration::HeadProduct(const torch::Tensor& hidden_rows) {
  Refresh();
  const torch::Tensor hidden = hidden_rows.to(torch::kFloat32).contiguous();
  const torch::Tensor out = torch::empty({hidden.size(0), head_.out()}, torch::kFloat32);
  PackedLinear::Scratch scratch;
  head_.Multiply(hidden.data_ptr<float>(), hidden.size(0), out.data_ptr<float>(), &scratch);
  return out;
}

// The new keys and values into the slots' rows.
void CpuGeneration::Append(const Pass& pass, size_t layer, const Part& part) {
  const auto& config = model_.config_;
  const int64_t heads = config.num_heads, kv_heads = config.num_kv_heads, dim = config.head_dim;
  const int64_t width = (heads + 2 * kv_heads) * dim;
  const auto put = [&](auto* keys, auto* values, const auto& convert) {
    for (size_t i = part.first; i < part.end; ++i) {
      const int slot = (*pass.slots)[i];
      for (int64_t t = 0; t < pass.counts[i]; ++t) {
        const float* source = part.qkv.data() + (pass.begins[i] - part.row + t) * width + heads * dim;
        const int64_t at = pass.lengths[i] - pass.counts[i] + t;
        for (int64_t h = 0; h < kv_heads; ++h) {
          const int64_t target = pass.cache->begin(slot) + (h * pass.cache->room(slot) + at) * dim;
          convert(source + h * dim, dim, keys + target);
          convert(source + (kv_heads + h) * dim, dim, values + target);
        }
      }
    }
  };
  const torch::Tensor &keys = pass.cache->keys(static_cast<int>(layer)),
                      &values = pass.cache->values(static_cast<int>(layer));
  if (keys.scalar_type() == torch::kBFloat16) {
    put(static_cast<uint16_t*>(keys.data_ptr()), static_cast<uint16_t*>(values.data_ptr()), kernels::Narrow);
  } else {
    put(keys.data_ptr<float>(), values.data_ptr<float>(),
        [](const float* from, int64_t count, float* to) { std::copy_n(from, count, to); });
  }
}

void CpuGeneration::Attend(const Pass& pass, size_t layer, Part* part) {
  Append(pass, layer, *part);
  const auto& config = model_.config_;
  const auto shape = AttentionShapeOf(config, model_.Window(layer));
  const int64_t all_heads = config.num_heads + 2 * config.num_kv_heads, dim = config.head_dim;
  const int l = static_cast<int>(layer);
  const torch::Tensor &keys = pass.cache->keys(l), &values = pass.cache->values(l);
  part->attended.resize(static_cast<size_t>(part->rows * shape.heads * dim));
  const bool final = layer + 1 == layers_.size();  // of its rows the last of each sequence are wanted alone
  part->queries.clear();
  int64_t longest = 0;
  // One sequence alone among several threads: its heads are not divided; what is long enough for that is a prompt.
  for (size_t i = part->first; i < part->end; ++i) {
    const int slot = (*pass.slots)[i];
    const int64_t row = pass.begins[i] - part->row, count = pass.counts[i], length = pass.lengths[i];
    float* const q = part->qkv.data() + (final ? row + count - 1 : row) * all_heads * dim;
    float* const out =
        part->attended.data() + (final ? static_cast<int64_t>(i - part->first) : row) * shape.heads * dim;
    if (count > 1 && !final) {
      const torch::Tensor queries =
          torch::from_blob(q, {count, shape.heads, dim}, {all_heads * dim, dim, 1}, torch::kFloat32);
      const torch::Tensor attended =
          AttendCached(shape, queries, pass.cache->keys(l, slot).narrow(1, 0, length),
                       pass.cache->values(l, slot).narrow(1, 0, length), model_.deterministic());
      std::copy_n(attended.data_ptr<float>(), attended.numel(), out);
      continue;
    }
    part->queries.push_back({q, pass.cache->begin(slot), pass.cache->room(slot), length, out});
    longest = std::max(longest, length);
  }
  part->scores.resize(static_cast<size_t>(kernels::RoundUpTo16(longest)));
  const auto count = static_cast<int64_t>(part->queries.size());
  if (keys.scalar_type() == torch::kBFloat16) {
    kernels::DecodeAttentionBf16(shape, part->queries.data(), count,
                                 static_cast<const uint16_t*>(keys.const_data_ptr()),
                                 static_cast<const uint16_t*>(values.const_data_ptr()), part->scores.data());
  } else {
    kernels::DecodeAttention(shape, part->queries.data(), count, keys.const_data_ptr<float>(),
                             values.const_data_ptr<float>(), part->scores.data());
  }
}

void CpuGeneration::RunPart(const Pass& pass, Part* part) {
  const auto& config = model_.config_;
  int64_t rows = part->rows;
  const int64_t hidden = config.hidden_size, heads = config.num_heads, kv_heads = config.num_kv_heads,
                dim = config.head_dim, all_heads = heads + 2 * kv_heads;
  const auto sized = [&rows](std::vector<float>* memory, int64_t width) {
    memory->resize(static_cast<size_t>(rows * width));
    return memory->data();
  };
  const auto add = [](const float* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
  };
  float *const x = sized(&part->x, hidden), *const normed = sized(&part->normed, hidden),
               *const projected = sized(&part->projected, hidden);
  for (int64_t t = 0; t < rows; ++t) {
    TakeRow(model_.token_embedding_, pass.tokens[part->row + t], false, x + t * hidden);
    if (config.embedding_scale != 1) {
      for (int64_t i = 0; i < hidden; ++i) x[t * hidden + i] *= static_cast<float>(embedding_scale_);
    }
    if (model_.position_embedding_.defined())
      TakeRow(model_.position_embedding_, pass.positions[part->row + t], true, x + t * hidden);
  }
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    layer.norm1.Apply(x, rows, normed, &part->moments);
    float* qkv = sized(&part->qkv, all_heads * dim);
    layer.qkv.Multiply(normed, rows, qkv, &part->scratch);
    if (config.qkv_layout == artifact::QkvLayout::kPerHead) {
      // Query, key and value of each head in turn, made all queries, then keys, then values.
      const float* const from = qkv;
      float* const to = sized(&part->joined, all_heads * dim);
      for (int64_t t = 0; t < rows; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t kind = 0; kind < 3; ++kind)
            std::copy_n(from + ((t * heads + h) * 3 + kind) * dim, dim, to + ((t * 3 + kind) * heads + h) * dim);
        }
      }
      std::swap(part->qkv, part->joined);
      qkv = part->qkv.data();
    }
    if (!layer.query.weight.empty()) {
      for (int64_t t = 0; t < rows; ++t) {
        layer.query.Apply(qkv + t * all_heads * dim, heads, qkv + t * all_heads * dim, &part->moments);
        float* const keys = qkv + (t * all_heads + heads) * dim;
        layer.key.Apply(keys, kv_heads, keys, &part->moments);
      }
    }
    const RotaryRows& rotary = pass.local.cos.defined() && config.windowed[l] ? pass.local : pass.rotary;
    if (rotary.cos.defined()) {
      kernels::Rotate(qkv, pass.positions + part->row, rotary.cos.data_ptr<float>(), rotary.sin.data_ptr<float>(), rows,
                      heads + kv_heads, dim, 2 * rotary.cos.size(1), all_heads * dim, 1.0F);
    }
    Attend(pass, l, part);
    if (l + 1 == layers_.size()) {
      for (size_t i = part->first; i < part->end; ++i) {
        const int64_t row = pass.begins[i] + pass.counts[i] - 1 - part->row;
        std::memmove(x + static_cast<int64_t>(i - part->first) * hidden, x + row * hidden,
                     static_cast<size_t>(hidden) * sizeof(float));
      }
      rows = static_cast<int64_t>(part->end - part->first);
    }
    layer.attention_out.Multiply(part->attended.data(), rows, projected, &part->scratch);
    if (!layer.post_attention.weight.empty()) layer.post_attention.Apply(projected, rows, projected, &part->moments);
    if (config.parallel_residual) {
      layer.norm2.Apply(x, rows, normed, &part->moments);
    } else {
      add(projected, rows * hidden, x);
      layer.norm2.Apply(x, rows, normed, &part->moments);
    }
    const int64_t width = layer.mlp_in.out(), active_width = layer.mlp_out.in();
    float *const inner = sized(&part->inner, width), *const active = sized(&part->active, active_width);
    layer.mlp_in.Multiply(normed, rows, inner, &part->scratch);
    kernels::Activate(ToKernel(config.activation), inner, config.gated_mlp ? inner + active_width : nullptr, rows,
                      active_width, width, active);
    float* const mlp = normed;
    layer.mlp_out.Multiply(active, rows, mlp, &part->scratch);
    if (!layer.post_mlp.weight.empty()) layer.post_mlp.Apply(mlp, rows, mlp, &part->moments);
    if (config.parallel_residual) {
      for (int64_t i = 0; i < rows * hidden; ++i) x[i] = mlp[i] + projected[i] + x[i];
    } else {
      add(mlp, rows * hidden, x);
    }
  }
  final_norm_->Apply(x, rows, pass.last + static_cast<int64_t>(part->first) * hidden, &part->moments);
}

// How long each sequence takes, in multiplications of a product: those of its rows, and what it attends to. A single
// query reads that from memory, which takes longer than multiplying it.
std::vector<int64_t> CpuGeneration::Costs(const Pass& pass) const {
  constexpr int64_t kRead = 8;
  const Layer& layer = layers_.front();
  int64_t products = 0;
  for (const PackedLinear* linear : {&layer.qkv, &layer.attention_out, &layer.mlp_in, &layer.mlp_out})
    products += linear->in() * linear->out();
  const int64_t attended = 2 * model_.config_.num_heads * model_.config_.head_dim;
  std::vector<int64_t> costs;
  for (size_t i = 0; i < pass.counts.size(); ++i) {
    const int64_t rows = pass.counts[i];
    costs.push_back(rows * (products + pass.lengths[i] * attended * (rows == 1 ? kRead : 1)));
  }
  return costs;
}

torch::Tensor CpuGeneration::Extend(const PackedBatch& batch, const std::vector<int>& slots, KvCache& cache) {
  Refresh();
  Pass pass;
  pass.slots = &slots;
  pass.cache = &cache;
  pass.counts = batch.lengths;
  pass.tokens = batch.token_ids.const_data_ptr<int64_t>();
  pass.positions = batch.position_ids.const_data_ptr<int64_t>();
  int64_t row = 0, end = 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    pass.begins.push_back(row);
    row += batch.lengths[i];
    const int64_t length = cache.length(slots[i]) + batch.lengths[i];
    TORCH_CHECK(length <= cache.room(slots[i]), "slot ", slots[i], " is full: ", cache.length(slots[i]), " tokens and ",
                batch.lengths[i], " more, of ", cache.room(slots[i]));
    pass.lengths.push_back(length);
    end = std::max(end, length);
  }
  model_.CheckPositions(end);
  for (int64_t t = 0; t < row; ++t) {
    TORCH_CHECK_INDEX(pass.tokens[t] >= 0 && pass.tokens[t] < model_.config_.vocab_size, "token ", pass.tokens[t],
                      " is beyond the vocabulary of ", model_.config_.vocab_size);
  }
  if (model_.rotary_) pass.rotary = model_.rotary_->ForCache(batch.position_ids, end);
  if (model_.local_rotary_) pass.local = model_.local_rotary_->ForCache(batch.position_ids, end);
  const torch::Tensor last =
      torch::empty({static_cast<int64_t>(slots.size()), model_.config_.hidden_size}, torch::kFloat32);
  pass.last = last.data_ptr<float>();

  // Parts that take equally long, as far as that goes without dividing a sequence; one part alone divides its products
  // instead.
  const std::vector<int64_t> costs = Costs(pass);
  int64_t total = 0, spent = 0;
  for (const int64_t cost : costs) total += cost;
  const auto threads = static_cast<size_t>(at::in_parallel_region() ? 1 : at::get_num_threads());
  const size_t count = slots.size() >= threads ? threads : 1;
  parts_.resize(count);
  size_t next = 0;
  for (size_t p = 0; p < count; ++p) {
    Part& part = parts_[p];
    part.first = next;
    part.row = next < slots.size() ? pass.begins[next] : row;
    const int64_t until = total / static_cast<int64_t>(count) * static_cast<int64_t>(p + 1);
    while (next < slots.size() && (p + 1 == count || spent + costs[next] / 2 < until)) spent += costs[next++];
    part.end = next;
    part.rows = (next < slots.size() ? pass.begins[next] : row) - part.row;
  }
  Divide(static_cast<int64_t>(count), [&](int64_t p) {
    const c10::InferenceMode inference;
    Part& part = parts_[static_cast<size_t>(p)];
    if (part.rows > 0) RunPart(pass, &part);
  });
  for (size_t i = 0; i < slots.size(); ++i) cache.SetLength(slots[i], pass.lengths[i]);
  return last;
}

}  // namespace rlhf::model
