// Rotary positions and windows of a config.json against transformers (recorded by tests/golden/generate_ropes.py): what
// is read gives its numbers, and what it does not take, or takes otherwise, is refused.
#include "model/rotary.h"

#include <cmath>
#include <map>
#include <string>

#include <gtest/gtest.h>

#include "artifact/model_config.h"
#include "tests/testing/golden.h"

namespace rlhf::model {
namespace {

// A row's cos and sin of position 1, which the frequencies are seen in.
void ExpectTurns(const RotaryRows& rows, const nlohmann::json& frequencies, double scale, const std::string& what) {
  const torch::Tensor cos = rows.cos[1].to(torch::kFloat64), sin = rows.sin[1].to(torch::kFloat64);
  ASSERT_EQ(cos.numel(), static_cast<int64_t>(frequencies.size())) << what;
  for (int64_t i = 0; i < cos.numel(); ++i) {
    const auto turn = frequencies[static_cast<size_t>(i)].get<double>();
    EXPECT_NEAR(cos[i].item<double>(), std::cos(turn) * scale, 1e-6) << what << " " << i;
    EXPECT_NEAR(sin[i].item<double>(), std::sin(turn) * scale, 1e-5 * std::abs(std::sin(turn))) << what << " " << i;
  }
}

void ExpectRope(const artifact::ModelConfig& config, const artifact::Rope& rope, const nlohmann::json& expected,
                const std::string& what) {
  const auto scale = expected["scale"].get<double>();
  Rotary rotary(rope, config.rotary_dim, config.max_position_embeddings, torch::kCPU);
  ExpectTurns(rotary.ForCache(torch::arange(2), 2), expected["inv_freq"], scale, what);
  if (!expected.contains("long_length")) return;
  const auto length = expected["long_length"].get<int64_t>();
  ExpectTurns(rotary.ForSequences(torch::arange(length), {length}), expected["long_inv_freq"], scale, what + " (long)");
}

TEST(RotaryTest, WhatAConfigurationSaysIsWhatTransformersMakesOfItOrRefused) {
  const nlohmann::json golden = Golden("ropes.json");
  std::map<std::string, int> read;
  for (const auto& row : golden["cases"]) {
    const auto family = row["family"].get<std::string>();
    nlohmann::json whole = golden["bases"][family];
    whole.update(row["config"]);
    const std::string what = whole.dump();
    const auto config = artifact::ParseModelConfig(what, "config.json");
    if (!config.ok()) {
      EXPECT_FALSE(row["must"].get<bool>()) << config.status() << "\n" << what;
      continue;
    }
    const nlohmann::json& expected = row["expected"];
    if (expected.is_null()) {
      ADD_FAILURE() << "transformers does not take " << what;
      continue;
    }
    ++read[family];
    const bool two = config->local_rope.kind != artifact::Rope::Kind::kNone;
    for (const auto& [type, rope] : expected["ropes"].items())
      ExpectRope(*config, two && type == "sliding_attention" ? config->local_rope : config->rope, rope, what);
    EXPECT_EQ(config->windowed, expected["windowed"].get<std::vector<bool>>()) << what;
    const auto window = expected["sliding_window"].get<int64_t>();
    if (window > 0) {
      EXPECT_EQ(config->sliding_window, window) << what;
    }
  }
  EXPECT_EQ(read.size(), 8u);
  for (const auto& [family, count] : read) EXPECT_GE(count, 8) << family << ": most of what is compared is refused";
}

}  // namespace
}  // namespace rlhf::model
