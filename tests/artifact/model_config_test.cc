// config.json of every family: what is read, what is written back, what is refused by name, what a hostile file gets.
#include "artifact/model_config.h"

#include <cstdint>
#include <filesystem>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "tests/testing/golden.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::artifact {
namespace {

using testing::HasSubstr;

nlohmann::json ConfigOf(const std::string& name) {
  return Golden("families.json")["models"][name]["config"];
}
std::string ErrorOf(const nlohmann::json& config) {
  const auto parsed = ParseModelConfig(config.dump(), "config.json");
  return parsed.ok() ? "" : std::string(parsed.status().message());
}

TEST(ModelConfigTest, EveryFamilyIsWrittenBackWhole) {
  const nlohmann::json models = Golden("families.json")["models"];
  for (const auto& [name, row] : models.items()) {
    const auto config = ParseModelConfig(row["config"].dump(), name);
    ASSERT_TRUE(config.ok()) << config.status();
    const nlohmann::json written = nlohmann::json::parse(ModelConfigToJson(*config));
    for (const auto& [key, value] : row["config"].items()) EXPECT_EQ(written[key], value) << name << " " << key;
    EXPECT_EQ(written["dtype"], "float32");
    ModelConfig reward = *config;
    reward.num_labels = 1;
    const auto again = ParseModelConfig(ModelConfigToJson(reward), name);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->num_labels, 1);
    EXPECT_THAT(again->architecture, HasSubstr("ForSequenceClassification"));
  }
}

TEST(ModelConfigTest, FilesOfOlderTransformersAreRead) {
  nlohmann::json llama = ConfigOf("llama_llama3");
  llama["rope_scaling"] = llama["rope_parameters"];
  llama["rope_scaling"].erase("rope_theta");
  llama.erase("rope_parameters");
  llama["rope_theta"] = 500000.0;
  llama["torch_dtype"] = "bfloat16";
  const auto config = ParseModelConfig(llama.dump(), "llama");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope.kind, Rope::Kind::kLlama3);
  EXPECT_EQ(config->rope.theta, 500000);
  EXPECT_EQ(config->rope.factor, 8);
  EXPECT_EQ(config->dtype, "bfloat16");
  nlohmann::json gemma = ConfigOf("gemma3");
  gemma.erase("rope_parameters");
  gemma["rope_theta"] = 1000000.0;
  gemma["rope_local_base_freq"] = 10000.0;
  gemma["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 8.0}};
  const auto older = ParseModelConfig(gemma.dump(), "gemma3");
  ASSERT_TRUE(older.ok()) << older.status();
  EXPECT_EQ(older->rope.kind, Rope::Kind::kLinear);
  EXPECT_EQ(older->local_rope.theta, 10000);
  nlohmann::json neox = ConfigOf("gpt_neox");
  neox.erase("rope_parameters");
  neox["rotary_pct"] = 0.5;
  neox["rotary_emb_base"] = 20000;
  const auto pythia = ParseModelConfig(neox.dump(), "gpt_neox");
  ASSERT_TRUE(pythia.ok()) << pythia.status();
  EXPECT_EQ(pythia->rotary_dim, 4);
  EXPECT_EQ(pythia->rope.theta, 20000);
  // Saved by transformers 4, which wrote both again beside them, and then by 5.
  neox.erase("rotary_pct");
  neox.erase("rotary_emb_base");
  neox["partial_rotary_factor"] = 0.5;
  neox["rope_theta"] = 20000;
  EXPECT_THAT(ErrorOf(neox), HasSubstr("rope_theta: expected 10000"));
  neox["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 20000}, {"partial_rotary_factor", 0.5}};
  const auto moved = ParseModelConfig(neox.dump(), "gpt_neox");
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(moved->rotary_dim, 4);
  EXPECT_EQ(moved->rope.theta, 20000);
}

TEST(ModelConfigTest, NothingUnknownOrUnsupportedIsIgnored) {
  const auto refused = [](const std::string& family, const std::string& key, const nlohmann::json& value,
                          const std::string& says) {
    nlohmann::json config = ConfigOf(family);
    config[key] = value;
    EXPECT_THAT(ErrorOf(config), testing::AllOf(HasSubstr("config.json"), HasSubstr(says))) << family << " " << key;
  };
  refused("llama", "attention_sinks", 4, "attention_sinks = 4");
  refused("llama", "sliding_window", 512, "sliding_window");
  refused("llama", "hidden_act", "relu2", "relu2");
  refused("llama", "quantization_config", {{"bits", 4}}, "quantization_config");
  refused("llama", "rope_parameters", {{"rope_type", "axial"}}, "axial");
  refused("llama", "rope_parameters", {{"rope_type", "linear"}, {"factor", 2.0}, {"bend", 1}}, "rope_parameters.bend");
  refused("llama", "rope_parameters", {{"rope_type", "yarn"}, {"factor", 2.0}}, "original_max_position_embeddings");
  refused("llama", "rope_parameters", {{"rope_type", "yarn"}, {"original_max_position_embeddings", 32}}, "factor");
  refused("llama", "rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}}, "rope_scaling, rope_parameters");
  for (const char* whole : {"llama", "mistral", "qwen2", "qwen3", "gemma2"})
    refused(whole, "partial_rotary_factor", 0.5, "partial_rotary_factor: expected 1");
  refused("gpt_neox", "rope_theta", 20000, "the rope's own, rotary_emb_base or its default");
  refused("gpt_neox", "partial_rotary_factor", 0.75, "the rope's own, rotary_pct or its default");
  refused("phi3", "rope_parameters", {{"rope_type", "linear"}, {"factor", 2.0}}, "expected default or longrope");
  refused("phi3_longrope", "original_max_position_embeddings", nullptr,
          "rope_parameters.original_max_position_embeddings: expected 4096");
  refused("gemma3", "rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}}, "rope_scaling, rope_parameters");
  refused("gemma3", "rope_parameters",
          {{"full_attention", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}},
           {"sliding_attention", {{"rope_type", "default"}, {"partial_rotary_factor", 1.0}}}},
          "full_attention.partial_rotary_factor");
  refused("llama", "architectures", {"LlamaForQuestionAnswering"}, "LlamaForQuestionAnswering");
  refused("llama", "torch_dtype", "float64", "float64");
  refused("gpt2", "scale_attn_by_inverse_layer_idx", true, "scale_attn_by_inverse_layer_idx");
  refused("gpt2", "n_head", 5, "n_embd");
  refused("qwen2_window", "layer_types", {"full_attention", "chunked_attention"}, "chunked_attention");
  refused("qwen2_window", "sliding_window", nullptr, "sliding_window");
  refused("gemma2", "use_bidirectional_attention", true, "use_bidirectional_attention");
  refused("gemma3", "attn_logit_softcapping", 50.0, "attn_logit_softcapping");
  refused("phi3_longrope", "rope_parameters",
          {{"rope_type", "longrope"}, {"short_factor", {1.0}}, {"long_factor", {1.0}}}, "short_factor");
  refused("mistral", "model_type", "mixtral", "mixtral");
}

TEST(ModelConfigTest, AWindowsPatternIsReadAsTransformersReadsIt) {
  nlohmann::json gemma = ConfigOf("gemma3");
  gemma.erase("layer_types");
  gemma["_sliding_window_pattern"] = 6;
  gemma["sliding_window_pattern"] = 2;
  // The one that transformers writes says another than the one it reads.
  EXPECT_THAT(ErrorOf(gemma), HasSubstr("_sliding_window_pattern: expected layer_types beside it"));
  gemma["_sliding_window_pattern"] = 2;
  const auto every_second = ParseModelConfig(gemma.dump(), "gemma3");
  ASSERT_TRUE(every_second.ok()) << every_second.status();
  EXPECT_EQ(every_second->windowed, (std::vector<bool>{true, false, true}));
  gemma["layer_types"] = {"full_attention", "full_attention", "sliding_attention"};
  gemma["_sliding_window_pattern"] = 6;
  const auto listed = ParseModelConfig(gemma.dump(), "gemma3");
  ASSERT_TRUE(listed.ok()) << listed.status();
  EXPECT_EQ(listed->windowed, (std::vector<bool>{false, false, true}));
  gemma.erase("rope_parameters");
  gemma["rope_scaling"] = {{"type", "linear"}, {"factor", 8.0}};
  EXPECT_THAT(ErrorOf(gemma), HasSubstr("rope_scaling.type: expected rope_type"));
}

// config.json files as they are published, but for what is long (factors of longrope, the source of a model's code).
TEST(ModelConfigTest, PublishedModelsAreRead) {
  struct Published {
    const char *name, *json;
    double theta;
    int64_t rotary_dim, context;
  };
  const Published published[] = {
      {"SmolLM2-135M", R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576,
        "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": true,
        "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false,
        "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": true, "vocab_size": 49152})",
       100000, 64, 8192},
      {"SmolLM2-1.7B-Instruct", R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 8192, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 24, "num_key_value_heads": 32,
        "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 130000,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
        "transformers.js_config": {"dtype": "q4", "kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"},
        "use_external_data_format": {"model.onnx": true, "model_fp16.onnx": true}}, "use_cache": true,
        "vocab_size": 49152})",
       130000, 64, 8192},
      {"Llama-3.2-1B", R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0,
        "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256})",
       500000, 64, 131072},
      {"Qwen2.5-0.5B", R"({"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false, "use_sliding_window": false,
        "vocab_size": 151936})",
       1e6, 64, 32768},
      {"gpt2-medium", R"({"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24,
        "n_positions": 1024, "n_special": 0, "output_past": true, "predict_special_tokens": true, "resid_pdrop": 0.1,
        "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
        "summary_type": "cls_index", "summary_use_proj": true, "task_specific_params": {"text-generation":
        {"do_sample": true, "max_length": 50}}, "vocab_size": 50257})",
       0, 0, 1024},
      {"pythia-70m", R"({"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0,
        "hidden_act": "gelu", "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8,
        "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
        "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": true, "use_parallel_residual": true,
        "vocab_size": 50304})",
       10000, 16, 2048},
      {"gemma-2-9b", R"({"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
        "sliding_window_size": 4096, "torch_dtype": "float32", "transformers_version": "4.42.0.dev0",
        "use_cache": true, "vocab_size": 256000})",
       10000, 256, 8192},
      {"gemma-3-270m", R"({"_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": null, "bos_token_id": 2,
        "eos_token_id": 1, "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 640, "initializer_range": 0.02, "intermediate_size": 2048, "layer_types": ["sliding_attention",
        "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
        "num_hidden_layers": 6, "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0, "rope_scaling": null, "rope_theta": 1000000.0,
        "sliding_window": 512, "torch_dtype": "bfloat16", "transformers_version": "4.55.0.dev0",
        "use_bidirectional_attention": false, "use_cache": true, "vocab_size": 262144})",
       1e6, 256, 32768},
      {"Phi-3-mini-4k-instruct", R"({"_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"],
        "attention_bias": false, "attention_dropout": 0.0, "auto_map": {"AutoConfig":
        "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}, "bos_token_id": 1,
        "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": true, "vocab_size": 32064})",
       10000, 96, 4096},
      {"Phi-4-mini-instruct, narrower", R"({"architectures": ["Phi3ForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "auto_map": {"AutoTokenizer": "Xenova/gpt-4o"}, "bos_token_id": 199999,
        "embd_pdrop": 0.0, "eos_token_id": 199999, "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 192,
        "initializer_range": 0.02, "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": false,
        "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "phi3", "num_attention_heads": 24,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "original_max_position_embeddings": 4096,
        "pad_token_id": 199999, "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": [1, 1.118320672, 43.0], "short_factor": [1.0, 1.0, 1.0], "type": "longrope"},
        "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0", "use_cache": true, "vocab_size": 200064})",
       10000, 6, 4096},
  };
  for (const Published& model : published) {
    const auto config = ParseModelConfig(model.json, model.name);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->rotary_dim, model.rotary_dim) << model.name;
    if (model.rotary_dim > 0) {
      EXPECT_EQ(config->rope.theta, model.theta) << model.name;
    }
    EXPECT_EQ(config->max_position_embeddings, model.context) << model.name;
  }
  // Where such a setting says what is not computed here.
  const std::pair<const char*, nlohmann::json> others[] = {
      {"rope_interleaved", true}, {"use_mrope", true}, {"n_special", 4}, {"lm_head_bias", true}};
  for (const auto& [key, value] : others) {
    int held = 0;
    for (const Published& model : published) {
      nlohmann::json config = nlohmann::json::parse(model.json);
      if (!config.contains(key)) continue;
      config[key] = value;
      EXPECT_THAT(ErrorOf(config), HasSubstr(key)) << model.name;
      ++held;
    }
    EXPECT_GT(held, 0) << key;
  }
}

// More than there may be memory for.
TEST(ModelConfigTest, AFileThatIsTooLargeIsNotRead) {
  const ScratchDir dir;
  const std::string path = dir.File("config.json");
  ASSERT_TRUE(WriteFileDurably(path, "{}").ok());
  std::filesystem::resize_file(path, uint64_t{1} << 40);  // a hole
  const auto config = LoadModelConfig(dir.path());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << config.status();
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("expected at most"));
}

TEST(ModelConfigTest, HostileSizesGetClearErrors) {
  const auto refused = [](const std::string& key, const nlohmann::json& value) {
    nlohmann::json config = ConfigOf("llama_grouped");
    config[key] = value;
    const auto parsed = ParseModelConfig(config.dump(), "config.json");
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << key << " = " << value;
  };
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"}) {
    for (const nlohmann::json& value :
         {nlohmann::json(0), nlohmann::json(-1), nlohmann::json(1.5), nlohmann::json("4"), nlohmann::json({1}),
          nlohmann::json(INT64_MAX), nlohmann::json(UINT64_MAX), nlohmann::json(1e300)})
      refused(key, value);
  }

  nlohmann::json wide = ConfigOf("llama_grouped");
  wide["hidden_size"] = wide["intermediate_size"] = int64_t{1} << 30;
  EXPECT_THAT(ErrorOf(wide), HasSubstr("parameters"));
  refused("rms_norm_eps", "tiny");
  refused("head_dim", 7);  // rotary positions turn pairs
  refused("rope_parameters", 7);
  // What keeps the order of keys looks each new one up from the beginning: 200,000 of them would take minutes to write.
  nlohmann::json labelled = ConfigOf("llama_grouped");
  labelled["architectures"] = {"LlamaForSequenceClassification"};
  for (int i = 0; i < 200'000; ++i) labelled["id2label"][absl::StrCat(i)] = 0;
  EXPECT_THAT(ErrorOf(labelled), testing::AllOf(HasSubstr("id2label"), HasSubstr("at most 1024 keys")));
  nlohmann::json many = ConfigOf("llama_grouped");
  many["architectures"] = {"LlamaForSequenceClassification"};
  many["num_labels"] = 1 << 20;
  EXPECT_THAT(ErrorOf(many), HasSubstr("num_labels"));
  refused("task_specific_params", {{"deeper", labelled["id2label"]}});
  // An error quotes no megabytes.
  nlohmann::json long_winded = ConfigOf("llama_grouped");
  long_winded["hidden_size"] = std::string(1 << 20, 'x');
  EXPECT_LT(ErrorOf(long_winded).size(), 3000u);
  std::string deep(100'000, '[');
  EXPECT_FALSE(ParseModelConfig(absl::StrCat("{\"model_type\":", deep), "config.json").ok());
  for (const char* text : {"", "{", "null", "[]", "{\"model_type\":7}", "\xff\xfe"})
    EXPECT_EQ(ParseModelConfig(text, "config.json").status().code(), absl::StatusCode::kInvalidArgument) << text;
}

}  // namespace
}  // namespace rlhf::artifact
