// Tiny models whose weights tests/golden/generate_model.py makes by the same formula.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "model/transformer.h"
#include "tests/testing/golden.h"

namespace rlhf::model {

inline std::unique_ptr<Transformer> FormulaModel(const nlohmann::json& golden, torch::Dtype dtype = torch::kFloat32) {
  const auto config = artifact::ParseModelConfig(golden["config"].dump(), "golden");
  EXPECT_TRUE(config.ok()) << config.status();
  if (!config.ok()) return nullptr;
  auto model = std::make_unique<Transformer>(*config, HeadKind::kLm, dtype, torch::kCPU);
  const auto names = golden["names"].get<std::vector<std::string>>();
  EXPECT_EQ(names.size(), model->named_parameters().size());
  for (size_t k = 0; k < names.size(); ++k) {
    torch::Tensor parameter = model->parameter(names[k]);
    const bool scale = (names[k].find("norm") != std::string::npos || names[k].find(".ln_") != std::string::npos) &&
                       names[k].size() > 6 && names[k].compare(names[k].size() - 6, 6, "weight") == 0;
    std::vector<float> values(static_cast<size_t>(parameter.numel()));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(0.08 * std::sin(0.7 * static_cast<double>(i) + static_cast<double>(k)) +
                                     (scale ? 1.0 : 0.0));
    }
    parameter.detach().copy_(torch::tensor(values).view(parameter.sizes()));
  }
  return model;
}

}  // namespace rlhf::model
