#include "model/transformer_parts.h"

#include <algorithm>
#include <cmath>

#include <ATen/CPUGeneratorImpl.h>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "model/attention.h"
#include "model/cpu_generation.h"
#include "model/device.h"
#include "model/fused_ops.h"
#include "model/gradient_checkpointing.h"
#include "model/linear.h"
#include "model/rotary.h"

namespace rlhf::model {
namespace {

using artifact::Norm;
using artifact::QkvLayout;
using artifact::Rope;

}  // namespace

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
  batch.token_ids = ToDevice(batch.token_ids, device);
  batch.position_ids = ToDevice(batch.position_ids, device);
  return batch;
}

torch::Tensor PackedBatch::LastRows() const {
  std::vector<int64_t> last;
  int64_t end = 0;
  for (const int64_t length : lengths) last.push_back((end += length) - 1);
  return ToDevice(last, token_ids.device());
}

Transformer::Transformer(const artifact::ModelConfig& config, HeadKind head, torch::Dtype dtype, torch::Device device)
    : config_(config),
      head_(head),
      dtype_(dtype),
      device_(device),
      family_(std::make_unique<FamilyDescription>(Describe(config, head == HeadKind::kScalar))) {
  const auto options = torch::TensorOptions().dtype(dtype).device(device);
  for (const auto& parameter : family_->parameters)
    parameters_.emplace_back(parameter.name, torch::empty(parameter.shape, options));
  const auto optional = [this](const std::string& name) { return name.empty() ? torch::Tensor() : parameter(name); };
  const auto linear = [&](const Projection& projection) {
    Linear part;
    part.module = projection.module;
    part.weight = parameter(projection.weight);
    part.bias = optional(projection.bias);
    part.in = projection.in;
    part.out = projection.out;
    return part;
  };
  for (const LayerNames& names : family_->layers) {
    Layer layer;
    layer.norm1_weight = parameter(names.norm1_weight);
    layer.norm1_bias = optional(names.norm1_bias);
    layer.norm2_weight = parameter(names.norm2_weight);
    layer.norm2_bias = optional(names.norm2_bias);
    layer.post_attention_norm = optional(names.post_attention_norm);
    layer.post_mlp_norm = optional(names.post_mlp_norm);
    layer.query_norm = optional(names.query_norm);
    layer.key_norm = optional(names.key_norm);
    for (const Projection& projection : names.qkv) layer.qkv.push_back(linear(projection));
    for (const Projection& projection : names.mlp_in) layer.mlp_in.push_back(linear(projection));
    layer.attention_out = {linear(names.attention_out)};
    layer.mlp_out = {linear(names.mlp_out)};
    layers_.push_back(std::move(layer));
  }
  token_embedding_ = parameter(family_->token_embedding);
  position_embedding_ = optional(family_->position_embedding);
  final_norm_weight_ = parameter(family_->final_norm_weight);
  final_norm_bias_ = optional(family_->final_norm_bias);
  head_weight_ = parameter(head == HeadKind::kScalar ? family_->scalar_head : family_->lm_head);
  const auto rotary = [&](const Rope& rope) {
    return rope.kind == Rope::Kind::kNone
               ? nullptr
               : std::make_unique<Rotary>(rope, config.rotary_dim, config.max_position_embeddings, device);
  };
  rotary_ = rotary(config.rope);
  local_rotary_ = rotary(config.local_rope);
}

Transformer::~Transformer() = default;

torch::Tensor Transformer::parameter(const std::string& name) const {
  for (const auto& [known, tensor] : parameters_) {
    if (known == name) return tensor;
  }
  TORCH_CHECK(false, "the model has no parameter \"", name, "\"");
}

absl::Status Transformer::SetDeterministic(bool on) {
  if (on && (!device_.is_cpu() || dtype_ != torch::kFloat32)) {
    return absl::InvalidArgumentError(
        "a deterministic job needs float32 on the CPU in rollout workers, reward servers and learners; this process "
        "computes otherwise: start it with --device cpu and float32");
  }
  deterministic_ = on;
  return absl::OkStatus();
}

absl::Status Transformer::UseInt8() {
  if (!device_.is_cpu() || dtype_ != torch::kFloat32) {
    return absl::InvalidArgumentError(
        absl::StrCat("int8 weights need the CPU, with float32 for all else; found device ", device_.str(),
                     ": start this process with --device cpu, or with another --precision"));
  }
  const auto quantize = [this](absl::Span<const Projection> projections, std::vector<Linear>* parts) {
    int64_t rows = 0;
    for (const Linear& part : *parts) rows += part.out;
    const auto weight = std::make_shared<Int8Weight>(rows, parts->front().in);
    int64_t row = 0;
    for (size_t i = 0; i < parts->size(); ++i) {
      Linear& part = (*parts)[i];
      part.int8 = weight;
      part.int8_row = row;
      row += part.out;
      const auto entry = std::find_if(parameters_.begin(), parameters_.end(),
                                      [&](const auto& named) { return named.first == projections[i].weight; });
      entry->second = part.weight = torch::empty(part.weight.sizes(), part.weight.options().device(torch::kMeta));
      int8_projections_[entry->first] = &part;
    }
  };
  for (size_t l = 0; l < layers_.size(); ++l) {
    const LayerNames& names = family_->layers[l];
    quantize(names.qkv, &layers_[l].qkv);
    quantize(absl::MakeConstSpan(&names.attention_out, 1), &layers_[l].attention_out);
    quantize(names.mlp_in, &layers_[l].mlp_in);
    quantize(absl::MakeConstSpan(&names.mlp_out, 1), &layers_[l].mlp_out);
  }
  return absl::OkStatus();
}

void Transformer::JoinProjections() {
  TORCH_CHECK(!int8() && !lora_, "projections are joined before they are int8 or adapted");
  if (family_->transposed) return;  // Conv1D's are stored so, and would be columns
  const torch::NoGradGuard no_grad;
  const auto join = [this](const std::vector<Projection>& projections, std::vector<Linear>* parts) {
    if (parts->size() == 1) return;
    int64_t rows = 0;
    for (const Linear& part : *parts) rows += part.out;
    const auto options = torch::TensorOptions().dtype(dtype_).device(device_);
    const torch::Tensor weight = torch::empty({rows, parts->front().in}, options);
    const torch::Tensor bias = parts->front().bias.defined() ? torch::empty({rows}, options) : torch::Tensor();
    int64_t row = 0;
    for (size_t i = 0; i < parts->size(); ++i) {
      Linear& part = (*parts)[i];
      // A parameter with a count of changes of its own, not a view of what does not train.
      const auto take = [&](const torch::Tensor& all, const std::string& name, torch::Tensor* own) {
        if (!all.defined()) return;
        const auto entry = std::find_if(parameters_.begin(), parameters_.end(),
                                        [&](const auto& named) { return named.first == name; });
        entry->second = *own = all.narrow(0, row, part.out).variable_data();
      };
      take(weight, projections[i].weight, &part.weight);
      take(bias, projections[i].bias, &part.bias);
      part.joined_weight = weight;
      part.joined_bias = bias;
      row += part.out;
    }
  };
  for (size_t l = 0; l < layers_.size(); ++l) {
    join(family_->layers[l].qkv, &layers_[l].qkv);
    join(family_->layers[l].mlp_in, &layers_[l].mlp_in);
  }
}

void Transformer::SetParameter(const std::string& name, const torch::Tensor& value) {
  const torch::NoGradGuard no_grad;
  if (generation_ != nullptr) generation_->WeightsChanged();
  if (const auto found = int8_projections_.find(name); found != int8_projections_.end()) {
    const Linear& part = *found->second;
    TORCH_CHECK(value.sizes() == part.weight.sizes(), "parameter ", name, " has shape ", part.weight.sizes(),
                ", found ", value.sizes());
    part.int8->SetRows(part.int8_row, family_->transposed ? value.t() : value);
    return;
  }
  for (const auto* known : {&parameters_, &adapters_}) {
    for (const auto& [known_name, tensor] : *known) {
      if (known_name != name) continue;
      TORCH_CHECK(value.sizes() == tensor.sizes(), "parameter ", name, " has shape ", tensor.sizes(), ", found ",
                  value.sizes());
      CopyInto(tensor, value);
      return;
    }
  }
  TORCH_CHECK(false, "the model has no parameter \"", name, "\"");
}

void Transformer::InitRandom(uint64_t seed) {
  TORCH_CHECK(!int8(), "an int8 model takes its weights from a float one");
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
                               ? config_.initializer_range
                               : 1.0 / std::sqrt(static_cast<double>(config_.hidden_size) + 1.0);
        torch::Tensor values = torch::empty(tensor.sizes(), torch::kFloat32);
        values.normal_(0, std, generator);
        tensor.copy_(values);
        break;
      }
    }
  }
}

std::vector<int64_t> Transformer::ParameterLayers() const {
  std::map<const void*, int64_t> layer_of;
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer layer = layers_[l];
    layer.ForEachTensor(
        [&](torch::Tensor& tensor) { layer_of[tensor.unsafeGetTensorImpl()] = static_cast<int64_t>(l); });
  }
  std::vector<int64_t> layers;
  for (const auto& [name, parameter] : parameters_) {
    const auto found = layer_of.find(parameter.unsafeGetTensorImpl());
    layers.push_back(found == layer_of.end() ? -1 : found->second);
  }
  return layers;
}

void Transformer::CheckPositions(int64_t longest) const {
  TORCH_CHECK(!position_embedding_.defined() || longest <= config_.max_position_embeddings, "a sequence has ", longest,
              " tokens; this model has learned ", config_.max_position_embeddings, " positions, and none beyond");
}

torch::Tensor Transformer::Embed(const torch::Tensor& token_ids, const torch::Tensor& position_ids) const {
  torch::Tensor x = torch::embedding(token_embedding_, token_ids);
  // The scale is rounded to the model's type first, as transformers does.
  if (config_.embedding_scale != 1)
    x = x * torch::tensor(config_.embedding_scale, torch::kFloat64).to(dtype_).item<double>();
  if (position_embedding_.defined()) x = x + torch::embedding(position_embedding_, position_ids);
  return x;
}

torch::Tensor Transformer::Norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) const {
  if (config_.norm == Norm::kLayer) return LayerNorm(x, weight, bias, config_.norm_eps);
  return RmsNorm(x, weight, config_.norm_eps, config_.norm == Norm::kRmsOffset);
}

torch::Tensor Transformer::Product(const torch::Tensor& x, const torch::Tensor& weight,
                                   const torch::Tensor& bias) const {
  if (deterministic_ || ProductsAreOurs(x)) return LinearFixedOrder(x, weight.t(), bias);
  return bias.defined() ? torch::linear(x, weight, bias) : torch::linear(x, weight);
}

torch::Tensor Transformer::ProjectBase(const torch::Tensor& x, const std::vector<Linear>& parts) const {
  const Linear& first = parts.front();
  // Conv1D's weights lie the other way.
  const auto product = [&](const torch::Tensor& weight, const torch::Tensor& bias) {
    return Product(x, family_->transposed ? weight.t() : weight, bias);
  };
  std::vector<torch::Tensor> weights, biases;
  bool trains = false;
  for (const Linear& part : parts) {
    weights.push_back(part.weight);
    if (part.bias.defined()) biases.push_back(part.bias);
    trains = trains || part.weight.requires_grad();
  }
  const auto bias = [&] {
    return biases.empty() ? torch::Tensor() : biases.size() == 1 ? biases[0] : torch::cat(biases);
  };
  if (first.int8 != nullptr) return Int8Linear(x, *first.int8, bias());
  if (parts.size() == 1) return product(first.weight, first.bias);
  if (first.joined_weight.defined() && !(trains && torch::GradMode::is_enabled()))
    return product(first.joined_weight, first.joined_bias);
  if (device_.is_cpu()) return product(torch::cat(weights, family_->transposed ? 1 : 0), bias());
  // A device reads its memory faster than it would join the weights there: the results are joined.
  std::vector<torch::Tensor> products;
  for (const Linear& part : parts) products.push_back(product(part.weight, part.bias));
  return torch::cat(products, 1);
}

torch::Tensor Transformer::Project(const torch::Tensor& x, const std::vector<Linear>& parts) const {
  const torch::Tensor y = ProjectBase(x, parts);
  const bool adapted = adapters_active_ && std::any_of(parts.begin(), parts.end(),
                                                       [](const Linear& part) { return part.lora_a.defined(); });
  if (!adapted) return y;
  std::vector<torch::Tensor> deltas;
  for (const Linear& part : parts) {
    deltas.push_back(part.lora_a.defined() ? Product(Product(x, part.lora_a, {}), part.lora_b, {})
                                           : torch::zeros({x.size(0), part.out}, y.options()));
  }
  const double scale = lora_->alpha / static_cast<double>(lora_->rank);
  return y + (deltas.size() == 1 ? deltas[0] : torch::cat(deltas, 1)) * scale;
}

torch::Tensor Transformer::Qkv(const Layer& layer, const torch::Tensor& x, const RotaryRows* rotary) const {
  const int64_t heads = config_.num_heads, kv_heads = config_.num_kv_heads, dim = config_.head_dim, rows = x.size(0);
  torch::Tensor qkv = Project(x, layer.qkv);
  if (config_.qkv_layout == QkvLayout::kPerHead)
    qkv = qkv.view({rows, heads, 3, dim}).transpose(1, 2).reshape({rows, 3 * heads, dim});
  qkv = qkv.view({rows, heads + 2 * kv_heads, dim});
  if (layer.query_norm.defined()) {
    const auto normed = [&](int64_t from, int64_t count, const torch::Tensor& weight) {
      return Norm(qkv.narrow(1, from, count).reshape({rows * count, dim}), weight, {}).view({rows, count, dim});
    };
    qkv = torch::cat({normed(0, heads, layer.query_norm), normed(heads, kv_heads, layer.key_norm),
                      qkv.narrow(1, heads + kv_heads, kv_heads)},
                     1);
  }
  return rotary == nullptr ? qkv : ApplyRotary(qkv, heads + kv_heads, *rotary);
}

torch::Tensor Transformer::RunLayer(const Layer& layer, size_t l, const torch::Tensor& all, const RotaryRows* rotary,
                                    const Attend& attend, const torch::Tensor& rows) const {
  const torch::Tensor qkv = Qkv(layer, Norm(all, layer.norm1_weight, layer.norm1_bias), rotary);
  // Every row is a key and a value of others; from here on they are on their own.
  const auto wanted = [&](const torch::Tensor& of_all) {
    return rows.defined() ? of_all.index_select(0, rows) : of_all;
  };
  const torch::Tensor x = wanted(all);
  torch::Tensor attended = Project(wanted(attend(l, qkv)), layer.attention_out);
  if (layer.post_attention_norm.defined()) attended = Norm(attended, layer.post_attention_norm, {});
  const torch::Tensor residual = config_.parallel_residual ? x : x + attended;
  torch::Tensor mlp = Project(Activate(Project(Norm(residual, layer.norm2_weight, layer.norm2_bias), layer.mlp_in),
                                       config_.activation, config_.gated_mlp),
                              layer.mlp_out);
  if (layer.post_mlp_norm.defined()) mlp = Norm(mlp, layer.post_mlp_norm, {});
  return config_.parallel_residual ? mlp + attended + x : residual + mlp;
}

torch::Tensor Transformer::RunCheckpointed(size_t l, const torch::Tensor& x, const RotaryRows* rotary,
                                           const Attend& attend, const torch::Tensor& rows) const {
  Layer layer = layers_[l];
  std::vector<torch::Tensor> trained;
  std::vector<bool> trains;
  layer.ForEachTensor([&](torch::Tensor& tensor) {
    trains.push_back(tensor.requires_grad());
    if (trains.back()) trained.push_back(tensor);
  });
  if (trained.empty() && !x.requires_grad()) return RunLayer(layer, l, x, rotary, attend, rows);
  const bool turns = rotary != nullptr;
  const Segment segment = [this, l, attend, rows, turns, turn = turns ? *rotary : RotaryRows(),
                           layer = std::move(layer), trains = std::move(trains), adapters = adapters_active_,
                           deterministic = deterministic_](const torch::Tensor& input,
                                                           const std::vector<torch::Tensor>& parameters) {
    TORCH_CHECK(adapters == adapters_active_ && deterministic == deterministic_,
                "a forward pass with gradient checkpointing is computed again in backward: adapters and deterministic ",
                "numerics must be as they were");
    Layer own = layer;
    size_t i = 0, next = 0;
    own.ForEachTensor([&](torch::Tensor& tensor) {
      if (trains[i++]) tensor = parameters[next++];
    });
    return RunLayer(own, l, input, turns ? &turn : nullptr, attend, rows);
  };
  if (layer_weights_ == nullptr) return Checkpoint(segment, x, trained);
  return Checkpoint(segment, x, trained, [weights = layer_weights_, l] {
    weights->Bring(l, /*backward=*/true);
    return std::shared_ptr<void>(nullptr, [weights, l](void*) { weights->Release(l); });
  });
}

torch::Tensor Transformer::Run(torch::Tensor x, const RotaryRows* rotary, const RotaryRows* local, const Attend& attend,
                               const torch::Tensor& rows) const {
  const bool checkpointed = gradient_checkpointing_ && torch::GradMode::is_enabled();
  TORCH_CHECK(layer_weights_ == nullptr || checkpointed || !torch::GradMode::is_enabled(),
              "weights that are brought layer by layer need gradient checkpointing");
  RotaryRows gathered, gathered_local;
  if (!IsFloatOrBf16OnCpu(x)) {
    for (const auto& [rows, own] : {std::pair(&rotary, &gathered), std::pair(&local, &gathered_local)}) {
      if (*rows == nullptr) continue;
      *own = Gathered(**rows, dtype_);
      *rows = own;
    }
  }
  for (size_t l = 0; l < layers_.size(); ++l) {
    const RotaryRows* turn = local != nullptr && config_.windowed[l] ? local : rotary;
    if (layer_weights_ != nullptr) layer_weights_->Bring(l, /*backward=*/false);
    const torch::Tensor wanted = l + 1 == layers_.size() ? rows : torch::Tensor();
    x = checkpointed ? RunCheckpointed(l, x, turn, attend, wanted) : RunLayer(layers_[l], l, x, turn, attend, wanted);
    if (layer_weights_ != nullptr) layer_weights_->Release(l);
  }
  return x;
}

kernels::AttentionShape AttentionShapeOf(const artifact::ModelConfig& config, int64_t window) {
  kernels::AttentionShape shape;
  shape.heads = config.num_heads;
  shape.kv_heads = config.num_kv_heads;
  shape.dim = config.head_dim;
  shape.scale = static_cast<float>(config.attention_scale);
  shape.softcap = static_cast<float>(config.attention_softcap);
  shape.window = window;
  return shape;
}

torch::Tensor Transformer::Hidden(const PackedBatch& batch, const torch::Tensor& rows) const {
  const auto layout = std::make_shared<const PackedLayout>(PackedLayout::Of(batch.lengths, device_));
  CheckPositions(layout->longest);
  RotaryRows rotary, local;
  if (rotary_) rotary = rotary_->ForSequences(batch.position_ids, batch.lengths);
  if (local_rotary_) local = local_rotary_->ForSequences(batch.position_ids, batch.lengths);
  const torch::Tensor x = Run(
      Embed(batch.token_ids, batch.position_ids), rotary_ ? &rotary : nullptr, local_rotary_ ? &local : nullptr,
      [this, layout](size_t l, const torch::Tensor& qkv) {
        return AttendPacked(AttentionShapeOf(config_, Window(l)), qkv, *layout, deterministic_);
      },
      rows);
  return Norm(x, final_norm_weight_, final_norm_bias_);
}

bool Transformer::HeadIsPacked() const {
  return generation_ != nullptr && !torch::GradMode::is_enabled() && CpuGeneration::Serves(*this);
}

torch::Tensor Transformer::HeadProduct(const torch::Tensor& hidden_rows) const {
  if (HeadIsPacked()) return generation_->HeadProduct(hidden_rows);
  return Product(hidden_rows, head_weight_, {});
}

torch::Tensor Transformer::Logits(const torch::Tensor& hidden_rows) const {
  TORCH_CHECK(head_ == HeadKind::kLm, "a model with a scalar head has no logits");
  // Not rounded to the model's type: log-probabilities are made from such logits too.
  const bool unrounded = !HeadIsPacked() && HasUnroundedProduct(hidden_rows) && !torch::GradMode::is_enabled();
  const torch::Tensor logits = unrounded ? UnroundedProduct(hidden_rows, head_weight_) : HeadProduct(hidden_rows);
  return (config_.logit_softcap > 0 ? Softcap(logits, config_.logit_softcap) : logits).to(torch::kFloat32);
}

torch::Tensor Transformer::Scalar(const torch::Tensor& hidden_rows) const {
  TORCH_CHECK(head_ == HeadKind::kScalar, "a model with a language-model head has no scalar");
  return HeadProduct(hidden_rows).squeeze(-1).to(torch::kFloat32);
}

void Transformer::CopyFrom(const Transformer& other) {
  const auto &mine = trained_parameters(), &theirs = other.trained_parameters();
  TORCH_CHECK(mine.size() == theirs.size(), "models differ in their parameters");
  for (size_t i = 0; i < mine.size(); ++i) {
    TORCH_CHECK(mine[i].first == theirs[i].first, "parameter ", mine[i].first, " meets ", theirs[i].first);
    SetParameter(mine[i].first, theirs[i].second);
  }
}

}  // namespace rlhf::model
