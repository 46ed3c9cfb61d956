// The naming scheme of Llama and what descends from it.
#include "absl/strings/str_cat.h"
#include "model/families/family.h"

namespace rlhf::model {

FamilyDescription DescribeDecoder(const artifact::ModelConfig& c, bool scalar_head) {
  using Init = FamilyDescription::Parameter::Init;
  FamilyDescription d;
  d.ignored_suffixes = {"rotary_emb.inv_freq"};
  const int64_t q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  std::string none;
  d.token_embedding = "model.embed_tokens.weight";
  d.parameters.push_back({d.token_embedding, {c.vocab_size, c.hidden_size}, Init::kNormal});
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    LayerNames layer;
    if (c.qkv_layout == artifact::QkvLayout::kJoined) {
      layer.qkv = {d.AddProjection(attention + "qkv_proj", c.hidden_size, q + 2 * kv, c.qkv_bias)};
    } else {
      layer.qkv = {d.AddProjection(attention + "q_proj", c.hidden_size, q, c.qkv_bias),
                   d.AddProjection(attention + "k_proj", c.hidden_size, kv, c.qkv_bias),
                   d.AddProjection(attention + "v_proj", c.hidden_size, kv, c.qkv_bias)};
    }
    layer.attention_out = d.AddProjection(attention + "o_proj", q, c.hidden_size, c.attention_out_bias);
    if (c.query_key_norm) {
      d.AddNorm(attention + "q_norm", c.head_dim, c.norm, &layer.query_norm, &none);
      d.AddNorm(attention + "k_norm", c.head_dim, c.norm, &layer.key_norm, &none);
    }
    if (c.joined_gate_up) {
      layer.mlp_in = {d.AddProjection(mlp + "gate_up_proj", c.hidden_size, 2 * c.intermediate_size, c.mlp_bias)};
    } else {
      layer.mlp_in = {d.AddProjection(mlp + "gate_proj", c.hidden_size, c.intermediate_size, c.mlp_bias),
                      d.AddProjection(mlp + "up_proj", c.hidden_size, c.intermediate_size, c.mlp_bias)};
    }
    layer.mlp_out = d.AddProjection(mlp + "down_proj", c.intermediate_size, c.hidden_size, c.mlp_bias);
    d.AddNorm(prefix + "input_layernorm", c.hidden_size, c.norm, &layer.norm1_weight, &none);
    if (c.sandwich_norms) {
      d.AddNorm(prefix + "post_attention_layernorm", c.hidden_size, c.norm, &layer.post_attention_norm, &none);
      d.AddNorm(prefix + "pre_feedforward_layernorm", c.hidden_size, c.norm, &layer.norm2_weight, &none);
      d.AddNorm(prefix + "post_feedforward_layernorm", c.hidden_size, c.norm, &layer.post_mlp_norm, &none);
    } else {
      d.AddNorm(prefix + "post_attention_layernorm", c.hidden_size, c.norm, &layer.norm2_weight, &none);
    }
    d.layers.push_back(std::move(layer));
  }
  d.AddNorm("model.norm", c.hidden_size, c.norm, &d.final_norm_weight, &none);
  d.AddHead(c, scalar_head, "lm_head.weight");
  return d;
}

}  // namespace rlhf::model
