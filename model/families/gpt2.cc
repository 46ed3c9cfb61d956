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
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string prefix = absl::StrCat("transformer.h.", i, ".");
    LayerNames layer;
    d.AddNorm(prefix + "ln_1", c.hidden_size, c.norm, &layer.norm1_weight, &layer.norm1_bias);
    layer.qkv = {d.AddProjection(prefix + "attn.c_attn", c.hidden_size, 3 * c.hidden_size, true)};
    layer.attention_out = d.AddProjection(prefix + "attn.c_proj", c.hidden_size, c.hidden_size, true);
    d.AddNorm(prefix + "ln_2", c.hidden_size, c.norm, &layer.norm2_weight, &layer.norm2_bias);
    layer.mlp_in = {d.AddProjection(prefix + "mlp.c_fc", c.hidden_size, c.intermediate_size, true)};
    layer.mlp_out = d.AddProjection(prefix + "mlp.c_proj", c.intermediate_size, c.hidden_size, true);
    d.layers.push_back(std::move(layer));
  }
  d.AddNorm("transformer.ln_f", c.hidden_size, c.norm, &d.final_norm_weight, &d.final_norm_bias);
  d.AddHead(c, scalar_head, "lm_head.weight");
  return d;
}

}  // namespace rlhf::model
