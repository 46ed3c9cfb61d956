// A model directory with a fresh tiny Llama and a tokenizer trained on a few lines.
#pragma once

#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "artifact/tokenizer.h"
#include "common/durable_file.h"
#include "model/weights_io.h"

namespace rlhf {

inline std::string MakeTinyModel(const std::string& dir, uint64_t seed = 0, int context = 64) {
  EXPECT_TRUE(MakeDirs(dir).ok());
  const std::string text = dir + "-text.txt";
  EXPECT_TRUE(
      WriteFileDurably(text, "the cat sat on the mat\nthe dog sat on the log\nyes no good bad red blue green\n").ok());
  const std::string tokenizer = dir + "-tokenizer";
  EXPECT_TRUE(MakeDirs(tokenizer).ok());
  const absl::Status trained = artifact::TrainByteLevelBpe({text}, 280, tokenizer);
  EXPECT_TRUE(trained.ok()) << trained;
  const nlohmann::json json = {{"model_type", "llama"},
                               {"architectures", {"LlamaForCausalLM"}},
                               {"vocab_size", 280},
                               {"hidden_size", 32},
                               {"intermediate_size", 64},
                               {"num_hidden_layers", 2},
                               {"num_attention_heads", 4},
                               {"max_position_embeddings", context},
                               {"tie_word_embeddings", true},
                               {"rms_norm_eps", 1e-5},
                               {"bos_token_id", 1},
                               {"eos_token_id", 2},
                               {"pad_token_id", 0}};
  const auto config = artifact::ParseModelConfig(json.dump(), "tiny model");
  EXPECT_TRUE(config.ok()) << config.status();
  model::Transformer model(*config, model::HeadKind::kLm, torch::kFloat32, torch::kCPU);
  model.InitRandom(seed);
  const absl::Status saved = model::SaveModel(model, dir, tokenizer);
  EXPECT_TRUE(saved.ok()) << saved;
  return dir;
}

}  // namespace rlhf
