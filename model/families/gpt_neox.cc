#include "absl/strings/str_cat.h"
#include "model/families/family.h"

namespace rlhf::model {

FamilyDescription DescribeGptNeoX(const artifact::ModelConfig& c, bool scalar_head) {
  using Init = FamilyDescription::Parameter::Init;
  FamilyDescription d;
  d.ignored_suffixes = {".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"};
  d.token_embedding = "gpt_neox.embed_in.weight";
  d.parameters.push_back({d.token_embedding, {c.vocab_size, c.hidden_size}, Init::kNormal});
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string prefix = absl::StrCat("gpt_neox.layers.", i, ".");
    LayerNames layer;
    d.AddNorm(prefix + "input_layernorm", c.hidden_size, c.norm, &layer.norm1_weight, &layer.norm1_bias);
    d.AddNorm(prefix + "post_attention_layernorm", c.hidden_size, c.norm, &layer.norm2_weight, &layer.norm2_bias);
    layer.qkv = {d.AddProjection(prefix + "attention.query_key_value", c.hidden_size, 3 * c.hidden_size, c.qkv_bias)};
    layer.attention_out =
        d.AddProjection(prefix + "attention.dense", c.hidden_size, c.hidden_size, c.attention_out_bias);
    layer.mlp_in = {d.AddProjection(prefix + "mlp.dense_h_to_4h", c.hidden_size, c.intermediate_size, c.mlp_bias)};
    layer.mlp_out = d.AddProjection(prefix + "mlp.dense_4h_to_h", c.intermediate_size, c.hidden_size, c.mlp_bias);
    d.layers.push_back(std::move(layer));
  }
  d.AddNorm("gpt_neox.final_layer_norm", c.hidden_size, c.norm, &d.final_norm_weight, &d.final_norm_bias);
  d.AddHead(c, scalar_head, "embed_out.weight");
  return d;
}

}  // namespace rlhf::model
