// Tiny models of every family whose weights tests/golden/family_configs.py makes by the same formula.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "model/transformer.h"
#include "tests/testing/golden.h"

namespace rlhf::model {

// Element i of the k-th parameter by name: uniform in ±scale, from 24 bits of a hash of (i, k).
inline double FormulaValue(uint64_t i, uint64_t k, double scale) {
  uint64_t z = (i + k * 1000003 + 1) * 0x9E3779B97F4A7C15ULL;
  z ^= z >> 32;
  z *= 0xD6E8FEB86659FD93ULL;
  z ^= z >> 32;
  return (static_cast<double>(z >> 40) / (1 << 24) - 0.5) * 2 * scale;
}

// As family_configs.py's fill: matrices ±0.25, embeddings and head ±0.5, vectors ±0.1, norms' scales 1 more.
inline void FillByFormula(Transformer& model) {
  const torch::NoGradGuard no_grad;
  // transformers calls GPT-NeoX's head lm_head, and the order of names counts.
  std::vector<std::pair<std::string, torch::Tensor>> parameters = model.named_parameters();
  for (auto& [name, tensor] : parameters) {
    if (name == "embed_out.weight") name = "lm_head.weight";
  }
  std::sort(parameters.begin(), parameters.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  const auto has = [](const std::string& name, const char* part) { return name.find(part) != std::string::npos; };
  for (size_t k = 0; k < parameters.size(); ++k) {
    auto& [name, tensor] = parameters[k];
    const bool embedding = has(name, "embed") || has(name, "wte") || has(name, "wpe") || has(name, "lm_head");
    const double scale = tensor.dim() == 1 ? 0.1 : embedding ? 0.5 : 0.25;
    const bool one = (has(name, "norm") || has(name, ".ln_")) && name.ends_with("weight") &&
                     model.config().norm != artifact::Norm::kRmsOffset;
    std::vector<float> values(static_cast<size_t>(tensor.numel()));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(FormulaValue(i, k, scale) + (one ? 1.0 : 0.0));
    tensor.detach().copy_(torch::tensor(values).view(tensor.sizes()));
  }
}

inline std::unique_ptr<Transformer> FamilyModel(const nlohmann::json& golden, HeadKind head = HeadKind::kLm,
                                                torch::Dtype dtype = torch::kFloat32) {
  const auto config = artifact::ParseModelConfig(golden["config"].dump(), "golden");
  EXPECT_TRUE(config.ok()) << config.status();
  if (!config.ok()) return nullptr;
  auto model = std::make_unique<Transformer>(*config, head, dtype, torch::kCPU);
  FillByFormula(*model);
  return model;
}

}  // namespace rlhf::model
