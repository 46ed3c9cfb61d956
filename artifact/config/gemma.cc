// Gemma 2 and the text models of Gemma 3.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "artifact/config/reader.h"

namespace rlhf::artifact {
namespace {

// pattern: every pattern-th layer sees everything, the others a window.
absl::Status ReadShared(ConfigReader& reader, int64_t pattern, ModelConfig* config) {
  config->norm = Norm::kRmsOffset;
  config->norm_eps = 1e-6;
  config->activation = Activation::kGeluTanh;
  config->sandwich_norms = true;
  config->tie_word_embeddings = true;
  if (!reader.Has("head_dim")) config->head_dim = 256;
  if (!reader.json().contains("num_key_value_heads")) config->num_kv_heads = 4;
  // Older files name the activation twice; the newer name rules.
  RLHF_RETURN_IF_BAD(ReadDecoderSizes(reader, "hidden_activation", config));
  reader.Harmless({"hidden_act"});
  RLHF_RETURN_IF_BAD(reader.Bool("attention_bias", &config->qkv_bias));
  config->attention_out_bias = config->qkv_bias;
  double scalar = 256;
  RLHF_RETURN_IF_BAD(reader.Double("query_pre_attn_scalar", &scalar, 1e-6, 1e9));
  config->attention_scale = 1 / std::sqrt(scalar);
  config->embedding_scale = std::sqrt(static_cast<double>(config->hidden_size));
  RLHF_RETURN_IF_BAD(reader.Only("use_bidirectional_attention", {false}));
  config->sliding_window = reader.json().contains("sliding_window") ? 0 : 4096;
  RLHF_RETURN_IF_BAD(reader.Int("sliding_window", &config->sliding_window, false));
  std::vector<bool> windowed;
  for (int64_t i = 0; i < config->num_layers; ++i) windowed.push_back((i + 1) % pattern != 0);
  RLHF_RETURN_IF_BAD(ReadLayerTypes(reader, true, windowed, config));
  return absl::OkStatus();
}

// A softcap that is absent has the family's default; null switches it off.
absl::Status ReadSoftcap(ConfigReader& reader, const char* key, double otherwise, double* out) {
  *out = reader.json().contains(key) ? 0 : otherwise;
  return reader.Double(key, out, 1e-3, 1e9);
}

}  // namespace

absl::Status ReadGemma2(ConfigReader& reader, ModelConfig* config) {
  config->max_position_embeddings = 8192;
  reader.Harmless({"sliding_window_size"});  // beside sliding_window, which is read
  RLHF_RETURN_IF_BAD(ReadShared(reader, 2, config));
  RLHF_RETURN_IF_BAD(ReadSoftcap(reader, "attn_logit_softcapping", 50, &config->attention_softcap));
  RLHF_RETURN_IF_BAD(ReadSoftcap(reader, "final_logit_softcapping", 30, &config->logit_softcap));
  return ReadRope(reader, 10000, 1, config);
}

absl::Status ReadGemma3(ConfigReader& reader, ModelConfig* config) {
  config->max_position_embeddings = 131072;
  config->query_key_norm = true;
  int64_t pattern = 6;
  RLHF_RETURN_IF_BAD(reader.Int("sliding_window_pattern", &pattern, false, 1, 10000));
  // transformers writes this one beside layer_types, which say the same, and does not read it.
  int64_t written = pattern;
  RLHF_RETURN_IF_BAD(reader.Int("_sliding_window_pattern", &written, false, 1, 10000));
  if (written != pattern && !reader.Has("layer_types")) {
    return reader.Problem("_sliding_window_pattern",
                          absl::StrCat("expected layer_types beside it, or sliding_window_pattern = ", written,
                                       " in its place; transformers does not read it and takes ", pattern));
  }
  RLHF_RETURN_IF_BAD(ReadShared(reader, pattern, config));
  // transformers reads this key for Gemma 3 and applies it nowhere: what it should mean is not known.
  RLHF_RETURN_IF_BAD(reader.Only("attn_logit_softcapping", {}));
  RLHF_RETURN_IF_BAD(ReadSoftcap(reader, "final_logit_softcapping", 0, &config->logit_softcap));
  // Two ropes: one a layer type in newer files; rope_theta, rope_scaling and rope_local_base_freq in older ones.
  config->rope = config->local_rope = {.kind = Rope::Kind::kDefault};
  config->rope.theta = 1e6;
  config->rotary_dim = config->head_dim;
  RLHF_RETURN_IF_BAD(reader.Double("rope_theta", &config->rope.theta, 1, 1e12));
  RLHF_RETURN_IF_BAD(reader.Double("rope_local_base_freq", &config->local_rope.theta, 1, 1e12));
  RLHF_RETURN_IF_BAD(CheckOneRope(reader));
  const auto read = [&](const std::string& where, const nlohmann::json& object, Rope* rope) -> absl::Status {
    double partial = 1;
    RLHF_RETURN_IF_BAD(ReadRopeObject(reader, where, object, *config, rope, &partial));
    if (rope->kind == Rope::Kind::kLongRope || rope->kind == Rope::Kind::kDynamic)
      return reader.Problem(where, "dynamic and longrope are not supported for Gemma 3");
    if (partial != 1) return reader.Problem(absl::StrCat(where, ".partial_rotary_factor"), "expected 1 for Gemma 3");
    // transformers looks for it beside the two ropes, not within.
    if (!rope->truncate) return reader.Problem(absl::StrCat(where, ".truncate"), "expected true for Gemma 3");
    return absl::OkStatus();
  };
  const nlohmann::json& scaling = reader.Raw("rope_scaling");
  if (!scaling.is_null()) {
    // transformers puts it over a rope that has its rope_type already, which a "type" does not change.
    if (scaling.is_object() && scaling.contains("type") && !scaling.contains("rope_type"))
      return reader.Problem("rope_scaling.type", "expected rope_type for Gemma 3, where transformers reads no type");
    RLHF_RETURN_IF_BAD(read("rope_scaling", scaling, &config->rope));
  }
  const nlohmann::json& both = reader.Raw("rope_parameters");
  if (!both.is_null()) {
    if (!both.is_object())
      return reader.Problem("rope_parameters", absl::StrCat("expected an object, found ", both.dump()));
    for (const auto& [name, value] : both.items()) {
      if (name != "full_attention" && name != "sliding_attention") {
        return reader.Problem(absl::StrCat("rope_parameters.", name),
                              "expected full_attention and sliding_attention, one rope each");
      }
      if (value.is_null()) continue;
      Rope* rope = name == "full_attention" ? &config->rope : &config->local_rope;
      RLHF_RETURN_IF_BAD(read(absl::StrCat("rope_parameters.", name), value, rope));
    }
  }
  return absl::OkStatus();
}

}  // namespace rlhf::artifact
