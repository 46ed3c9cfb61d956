#include <iostream>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/model_config.h"
#include "artifact/tokenizer.h"
#include "common/durable_file.h"
#include "model/guard.h"
#include "model/tool/commands.h"
#include "model/tool/out_path.h"
#include "model/weights_io.h"

namespace rlhf::model::tool {

absl::Status Inspect(const std::string& dir) {
  const auto config = artifact::LoadModelConfig(dir);
  if (!config.ok()) return config.status();
  LoadOptions options;
  options.head = config->num_labels > 0 ? HeadKind::kScalar : HeadKind::kLm;
  const auto model = LoadModel(dir, options);
  if (!model.ok()) return model.status();
  nlohmann::ordered_json out;
  out["architecture"] = config->architecture;
  out["parameters"] = artifact::NumParameters(*config);
  out["vocab_size"] = config->vocab_size;
  out["hidden_size"] = config->hidden_size;
  out["layers"] = config->num_layers;
  out["heads"] = config->num_heads;
  out["kv_heads"] = config->num_kv_heads;
  out["context"] = config->max_position_embeddings;
  out["dtype"] = config->dtype;
  out["weights_digest"] = WeightsDigest(**model);
  if (const auto tokenizer = artifact::Tokenizer::Load(dir); tokenizer.ok()) {
    out["tokenizer"]["vocab_size"] = (*tokenizer)->vocab_size();
    if ((*tokenizer)->eos_id()) out["tokenizer"]["eos_id"] = *(*tokenizer)->eos_id();
    if ((*tokenizer)->eos_ids().size() > 1) out["tokenizer"]["eos_ids"] = (*tokenizer)->eos_ids();
  } else if (!absl::IsNotFound(tokenizer.status())) {
    return tokenizer.status();
  }
  for (const auto& [name, parameter] : (*model)->named_parameters()) out["tensors"][name] = parameter.sizes().vec();
  std::cout << out.dump(1) << "\n";
  return absl::OkStatus();
}

absl::Status Init(const std::string& config_file, const std::string& tokenizer_dir, const std::string& out_dir,
                  uint64_t seed) {
  if (absl::Status status = CheckOutFolder(out_dir, {"config.json", "generation_config.json"},
                                           {{"--config", config_file}, {"--tokenizer", tokenizer_dir}});
      !status.ok())
    return status;
  const auto json = ReadFile(config_file);
  if (!json.ok()) return json.status();
  const auto config = artifact::ParseModelConfig(*json, config_file);
  if (!config.ok()) return config.status();
  if (!tokenizer_dir.empty()) {
    const auto tokenizer = artifact::Tokenizer::Load(tokenizer_dir);
    if (!tokenizer.ok()) return tokenizer.status();
    if ((*tokenizer)->vocab_size() > config->vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(config_file, ": vocab_size: expected at least the tokenizer's ",
                                                     (*tokenizer)->vocab_size(), ", found ", config->vocab_size));
    }
  }
  if (const absl::Status made = MakeDirs(out_dir); !made.ok()) return made;
  return Guard("init", [&] {
    Transformer model(*config, config->num_labels > 0 ? HeadKind::kScalar : HeadKind::kLm, torch::kFloat32,
                      torch::kCPU);
    model.InitRandom(seed);
    return SaveModel(model, out_dir, tokenizer_dir);
  });
}

}  // namespace rlhf::model::tool
