// Tests on the first CUDA device; skipped where there is none.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "model/device.h"
#include "model/transformer.h"
#include "tests/model/family_models.h"

namespace rlhf {

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    const absl::StatusOr<torch::Device> device = model::ParseDevice("cuda:0");
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    device_ = *device;
  }
  torch::Device device_ = torch::kCPU;
};

// The model there, in another type.
inline std::unique_ptr<model::Transformer> Copied(const model::Transformer& from, torch::Dtype dtype,
                                                  torch::Device device) {
  auto to = std::make_unique<model::Transformer>(from.config(), from.head(), dtype, device);
  for (const auto& [name, tensor] : from.named_parameters()) to->SetParameter(name, tensor.detach());
  return to;
}

// The greatest difference, as a share of the greatest magnitude expected, or of 1 where that is less.
inline double Apart(const torch::Tensor& found, const torch::Tensor& expected) {
  const auto wide = [](const torch::Tensor& t) { return t.detach().to(torch::kCPU, torch::kFloat64); };
  const double largest = wide(expected).abs().max().item<double>();
  return (wide(found) - wide(expected)).abs().max().item<double>() / std::max(1.0, largest);
}

// Likewise of the root mean squares.
inline double ApartOnAverage(const torch::Tensor& found, const torch::Tensor& expected) {
  const auto wide = [](const torch::Tensor& t) { return t.detach().to(torch::kCPU, torch::kFloat64); };
  return ((wide(found) - wide(expected)).norm() / wide(expected).norm()).item<double>();
}

// Every family's tiny model with float32 weights on the CPU, by name.
inline std::vector<std::pair<std::string, std::unique_ptr<model::Transformer>>> FamilyModels() {
  std::vector<std::pair<std::string, std::unique_ptr<model::Transformer>>> out;
  const nlohmann::json all = Golden("families.json");
  for (const auto& [name, golden] : all["models"].items()) out.emplace_back(name, model::FamilyModel(golden));
  return out;
}

}  // namespace rlhf
