#include "absl/strings/str_cat.h"
#include "model/families/family.h"

namespace rlhf::model {

FamilyDescription DescribeLlama(const artifact::ModelConfig& c, bool scalar_head) {
  using Init = FamilyDescription::Parameter::Init;
  FamilyDescription d;
  d.token_embedding = "model.embed_tokens.weight";
  d.ignored_suffixes = {"rotary_emb.inv_freq"};
  const int64_t q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  d.parameters.push_back({d.token_embedding, {c.vocab_size, c.hidden_size}, Init::kNormal});
  const auto projection = [&](const std::string& name, int64_t out, int64_t in, bool bias) {
    d.parameters.push_back({name + ".weight", {out, in}, Init::kNormal});
    if (bias) d.parameters.push_back({name + ".bias", {out}, Init::kZero});
    return Projection{name + ".weight", bias ? name + ".bias" : ""};
  };
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    LayerNames layer;
    layer.qkv = {projection(prefix + "self_attn.q_proj", q, c.hidden_size, c.attention_bias),
                 projection(prefix + "self_attn.k_proj", kv, c.hidden_size, c.attention_bias),
                 projection(prefix + "self_attn.v_proj", kv, c.hidden_size, c.attention_bias)};
    layer.attention_out = projection(prefix + "self_attn.o_proj", c.hidden_size, q, c.attention_bias);
    layer.mlp_in = {projection(prefix + "mlp.gate_proj", c.intermediate_size, c.hidden_size, c.mlp_bias),
                    projection(prefix + "mlp.up_proj", c.intermediate_size, c.hidden_size, c.mlp_bias)};
    layer.mlp_out = projection(prefix + "mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias);
    layer.norm1_weight = prefix + "input_layernorm.weight";
    layer.norm2_weight = prefix + "post_attention_layernorm.weight";
    d.parameters.push_back({layer.norm1_weight, {c.hidden_size}, Init::kOne});
    d.parameters.push_back({layer.norm2_weight, {c.hidden_size}, Init::kOne});
    d.layers.push_back(std::move(layer));
  }
  d.final_norm_weight = "model.norm.weight";
  d.parameters.push_back({d.final_norm_weight, {c.hidden_size}, Init::kOne});
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
