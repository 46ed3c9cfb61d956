#include "absl/strings/str_cat.h"
#include "model/families/family.h"

namespace rlhf::model {

FamilyDescription DescribeGpt2(const artifact::ModelConfig& c, bool scalar_head) {
  using Init = FamilyDescription::Parameter::Init;
  FamilyDescription d;
  d.transposed = true;
  d.optional_prefix = "transformer.";
  d.ignored_suffixes = {".attn.bias", ".attn.masked_bias"};
  d.token_embedding = "transformer.wte.weight";
  d.position_embedding = "transformer.wpe.weight";
  d.parameters.push_back({d.token_embedding, {c.vocab_size, c.hidden_size}, Init::kNormal});
  d.parameters.push_back({d.position_embedding, {c.max_position_embeddings, c.hidden_size}, Init::kNormal});
  const auto conv1d = [&](const std::string& name, int64_t in, int64_t out) {
    d.parameters.push_back({name + ".weight", {in, out}, Init::kNormal});
    d.parameters.push_back({name + ".bias", {out}, Init::kZero});
    return Projection{name + ".weight", name + ".bias"};
  };
  const auto norm = [&](const std::string& name, std::string* weight, std::string* bias) {
    *weight = name + ".weight";
    *bias = name + ".bias";
    d.parameters.push_back({*weight, {c.hidden_size}, Init::kOne});
    d.parameters.push_back({*bias, {c.hidden_size}, Init::kZero});
  };
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string prefix = absl::StrCat("transformer.h.", i, ".");
    LayerNames layer;
    norm(prefix + "ln_1", &layer.norm1_weight, &layer.norm1_bias);
    layer.qkv = {conv1d(prefix + "attn.c_attn", c.hidden_size, 3 * c.hidden_size)};
    layer.attention_out = conv1d(prefix + "attn.c_proj", c.hidden_size, c.hidden_size);
    norm(prefix + "ln_2", &layer.norm2_weight, &layer.norm2_bias);
    layer.mlp_in = {conv1d(prefix + "mlp.c_fc", c.hidden_size, c.intermediate_size)};
    layer.mlp_out = conv1d(prefix + "mlp.c_proj", c.intermediate_size, c.hidden_size);
    d.layers.push_back(std::move(layer));
  }
  norm("transformer.ln_f", &d.final_norm_weight, &d.final_norm_bias);
  if (scalar_head) {
    d.parameters.push_back({d.scalar_head, {1, c.hidden_size}, Init::kScalarHead});
  } else if (c.tie_word_embeddings) {
    d.lm_head = d.token_embedding;
  } else {
    d.lm_head = "lm_head.weight";
    d.parameters.push_back({d.lm_head, {c.vocab_size, c.hidden_size}, Init::kNormal});
  }
  return d;
}

}  // namespace rlhf::model
