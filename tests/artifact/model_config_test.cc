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
  refused("gpt_neox", "rope_theta", 20000, "transformers reads rotary_emb_base alone");
  refused("gpt_neox", "partial_rotary_factor", 0.5, "transformers reads rotary_pct alone");
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
