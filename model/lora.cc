// The transformer's adapters: attaching and merging. Hu et al. 2021.
#include "model/lora.h"

#include <algorithm>
#include <cmath>

#include <ATen/CPUGeneratorImpl.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/transformer_parts.h"

namespace rlhf::model {
namespace {

std::string LastPart(const std::string& module) {
  return module.substr(module.rfind('.') + 1);
}

}  // namespace

absl::Status Transformer::AttachLora(const LoraConfig& config, uint64_t seed) {
  if (lora_) return absl::FailedPreconditionError("the model has adapters already");
  if (config.rank < 1 || config.rank > 4096)
    return absl::InvalidArgumentError(absl::StrCat("lora.rank: expected 1 to 4096, found ", config.rank));
  if (!(config.alpha > 0) || !std::isfinite(config.alpha))
    return absl::InvalidArgumentError(absl::StrCat("lora.alpha: expected more than 0, found ", config.alpha));
  const torch::NoGradGuard no_grad;
  std::vector<Linear*> all;
  for (Layer& layer : layers_) {
    for (std::vector<Linear>* parts : {&layer.qkv, &layer.attention_out, &layer.mlp_in, &layer.mlp_out}) {
      for (Linear& part : *parts) all.push_back(&part);
    }
  }
  std::vector<std::string> names;
  for (const Linear* part : all) {
    const std::string name = LastPart(part->module);
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  auto lora = std::make_unique<LoraConfig>(config);
  if (lora->target_modules.empty()) lora->target_modules = names;
  // A target is the module's whole name or the end of it, as in PEFT.
  const auto matches = [](const std::string& module, const std::string& target) {
    return module == target || absl::EndsWith(module, "." + target);
  };
  for (const std::string& target : lora->target_modules) {
    if (std::none_of(all.begin(), all.end(), [&](const Linear* part) { return matches(part->module, target); })) {
      return absl::InvalidArgumentError(absl::StrCat("lora.target_modules: no projection is named \"", target,
                                                     "\"; this model has ", absl::StrJoin(names, ", ")));
    }
  }
  auto generator = at::detail::createCPUGenerator(seed);
  const auto options = torch::TensorOptions().dtype(dtype_).device(device_);
  for (Linear* part : all) {
    if (std::none_of(lora->target_modules.begin(), lora->target_modules.end(),
                     [&](const std::string& target) { return matches(part->module, target); }))
      continue;
    const double bound = 1 / std::sqrt(static_cast<double>(part->in));
    torch::Tensor values = torch::empty({config.rank, part->in}, torch::kFloat32);
    values.uniform_(-bound, bound, generator);
    part->lora_a = values.to(options);
    part->lora_b = torch::zeros({part->out, config.rank}, options);
    adapters_.emplace_back(part->module + ".lora_A.weight", part->lora_a);
    adapters_.emplace_back(part->module + ".lora_B.weight", part->lora_b);
  }
  if (head_ == HeadKind::kScalar) adapters_.emplace_back(family_->scalar_head, head_weight_);
  lora_ = std::move(lora);
  return absl::OkStatus();
}

std::vector<std::pair<std::string, torch::Tensor>> Transformer::MergedParameters() const {
  TORCH_CHECK(!int8(), "an int8 model has no float weights to merge or save");
  const torch::NoGradGuard no_grad;
  std::vector<std::pair<std::string, torch::Tensor>> out;
  for (const auto& [name, parameter] : parameters_) out.emplace_back(name, parameter.detach());
  if (!lora_) return out;
  const double scale = lora_->alpha / static_cast<double>(lora_->rank);
  for (const Layer& layer : layers_) {
    for (const std::vector<Linear>* parts : {&layer.qkv, &layer.attention_out, &layer.mlp_in, &layer.mlp_out}) {
      for (const Linear& part : *parts) {
        if (!part.lora_a.defined()) continue;
        const auto entry = std::find_if(out.begin(), out.end(),
                                        [&](const auto& named) { return named.first == part.module + ".weight"; });
        torch::Tensor delta = torch::matmul(part.lora_b.to(torch::kFloat32), part.lora_a.to(torch::kFloat32)) * scale;
        if (family_->transposed) delta = delta.t();
        entry->second = (entry->second.to(torch::kFloat32) + delta).to(dtype_);
      }
    }
  }
  return out;
}

}  // namespace rlhf::model
