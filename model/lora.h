// LoRA adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors.
//
// Tensors are named "base_model.model.MODULE.lora_A.weight" [rank, in] and "….lora_B.weight" [out, rank]; a reward
// model's scalar head goes with them as "base_model.model.score.weight" (PEFT's modules_to_save). `peft` loads what is
// written here, and what it writes is read, within the settings that LoraConfig has; others are refused by name.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/transformer.h"

namespace rlhf::model {

// The model must have adapters. base_model: what adapter_config.json says they adapt.
absl::Status SaveAdapter(const Transformer& model, const std::string& dir, const std::string& base_model);

// The settings of DIR/adapter_config.json. InvalidArgument names a setting that is not supported (dropout above 0 is
// read as 0: nothing here drops).
absl::StatusOr<LoraConfig> LoadAdapterConfig(const std::string& dir);

// Attaches DIR's adapters to a model without any. InvalidArgument names missing, extra and misshaped tensors.
absl::Status LoadAdapter(const std::string& dir, Transformer* model);

}  // namespace rlhf::model
