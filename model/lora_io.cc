#include <algorithm>
#include <set>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "artifact/safetensors.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "model/guard.h"
#include "model/lora.h"
#include "model/tensor_types.h"
#include "model/weights_io.h"

namespace rlhf::model {
namespace {

using Json = nlohmann::json;

constexpr char kPrefix[] = "base_model.model.";
constexpr size_t kLargestConfig = 1 << 20;  // bytes

// Settings of PEFT's LoraConfig that change the numbers, and the only values of them that are supported.
const std::vector<std::pair<const char*, std::vector<Json>>>& Supported() {
  static const auto* supported =
      new std::vector<std::pair<const char*, std::vector<Json>>>{{"peft_type", {"LORA"}},
                                                                 {"bias", {"none"}},
                                                                 {"use_rslora", {false}},
                                                                 {"use_dora", {false}},
                                                                 {"use_qalora", {false}},
                                                                 {"use_bdlora", {nullptr, false}},
                                                                 {"alora_invocation_tokens", {nullptr}},
                                                                 {"arrow_config", {nullptr}},
                                                                 {"rank_pattern", {Json::object()}},
                                                                 {"alpha_pattern", {Json::object()}},
                                                                 {"layers_to_transform", {nullptr}},
                                                                 {"layers_pattern", {nullptr}},
                                                                 {"layer_replication", {nullptr}},
                                                                 {"exclude_modules", {nullptr}},
                                                                 {"target_parameters", {nullptr}},
                                                                 {"trainable_token_indices", {nullptr}},
                                                                 {"lora_bias", {false}},
                                                                 {"megatron_config", {nullptr}}};
  return *supported;
}

// A list or an object may nest so deeply that writing it out, or copying it, ends the process.
std::string Shown(const Json& json) {
  return json.is_structured() ? absl::StrCat(json.is_array() ? "a list of " : "an object of ", json.size())
                              : json.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 80);
}

}  // namespace

absl::Status SaveAdapter(const Transformer& model, const std::string& dir, const std::string& base_model) {
  if (model.lora() == nullptr) return absl::FailedPreconditionError("the model has no adapters to save");
  return Guard(absl::StrCat("saving adapters to ", dir), [&]() -> absl::Status {
    if (absl::Status status = MakeDirs(dir); !status.ok()) return status;
    std::vector<std::pair<std::string, torch::Tensor>> tensors;
    for (const auto& [name, parameter] : model.trained_parameters()) tensors.emplace_back(kPrefix + name, parameter);
    if (absl::Status status = WriteTensors(dir + "/adapter_model.safetensors", tensors); !status.ok()) return status;
    const LoraConfig& lora = *model.lora();
    const bool scalar = model.head() == HeadKind::kScalar;
    nlohmann::ordered_json config;
    config["peft_type"] = "LORA";
    config["task_type"] = scalar ? "SEQ_CLS" : "CAUSAL_LM";
    config["base_model_name_or_path"] = base_model;
    config["r"] = lora.rank;
    config["lora_alpha"] = lora.alpha;
    config["lora_dropout"] = 0.0;
    config["target_modules"] = lora.target_modules;
    config["modules_to_save"] = scalar ? nlohmann::ordered_json({"score"}) : nullptr;
    config["fan_in_fan_out"] = model.config().family == artifact::Family::kGpt2;
    config["bias"] = "none";
    config["use_rslora"] = config["use_dora"] = false;
    config["inference_mode"] = true;
    config["init_lora_weights"] = true;
    return WriteFileDurably(dir + "/adapter_config.json", config.dump(2) + "\n");
  });
}

absl::StatusOr<LoraConfig> LoadAdapterConfig(const std::string& dir) {
  const std::string path = dir + "/adapter_config.json";
  const auto text = ReadFile(path);
  if (!text.ok()) return text.status();
  const Json json = text->size() <= kLargestConfig ? Json::parse(*text, nullptr, false) : Json();
  const auto bad = [&](absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat(path, ": ", what)); };
  if (!json.is_object()) return bad("expected a JSON object of at most 1 MB");
  for (const auto& [key, allowed] : Supported()) {
    if (!json.contains(key) || json[key].is_null()) continue;
    if (std::find(allowed.begin(), allowed.end(), json[key]) == allowed.end())
      return bad(absl::StrCat(key, ": found ", Shown(json[key]), ", which is not supported"));
  }
  // Only the scalar head may train beside the adapters; PEFT names it twice and more.
  const auto saved = json.find("modules_to_save");
  if (saved != json.end() && !std::all_of(saved->begin(), saved->end(), [](const Json& module) {
        return module == "score" || module == "classifier";
      })) {
    return bad(absl::StrCat("modules_to_save: found ", Shown(*saved), "; supported: the head, \"score\""));
  }
  LoraConfig config;
  if (!json.contains("r") || !json["r"].is_number_integer()) return bad("r: expected the rank, a whole number");
  config.rank = json["r"].get<int64_t>();
  if (!json.contains("lora_alpha") || !json["lora_alpha"].is_number()) return bad("lora_alpha: expected a number");
  config.alpha = json["lora_alpha"].get<double>();
  if (!json.contains("target_modules") || !json["target_modules"].is_array())
    return bad("target_modules: expected a list of module names (a pattern is not supported)");
  for (const Json& target : json["target_modules"]) {
    if (!target.is_string()) return bad("target_modules: expected a list of module names");
    config.target_modules.push_back(target.get<std::string>());
  }
  std::sort(config.target_modules.begin(), config.target_modules.end());
  return config;
}

absl::Status LoadAdapter(const std::string& dir, Transformer* model) {
  const auto config = LoadAdapterConfig(dir);
  if (!config.ok()) return config.status();
  const auto opened = artifact::SafetensorsFile::Open(dir + "/adapter_model.safetensors");
  if (!opened.ok()) return opened.status();
  const artifact::SafetensorsFile* file = opened->get();
  if (absl::Status status = model->AttachLora(*config, 0); !status.ok()) return status;
  return Guard(absl::StrCat("loading adapters from ", dir), [&]() -> absl::Status {
    const torch::NoGradGuard no_grad;
    std::vector<std::string> problems;
    std::set<std::string> used;
    for (const auto& [name, parameter] : model->trained_parameters()) {
      const auto entry = file->tensors().find(kPrefix + name);
      if (entry == file->tensors().end()) {
        problems.push_back(absl::StrCat("missing: ", kPrefix, name));
        continue;
      }
      used.insert(entry->first);
      if (parameter.sizes() != c10::IntArrayRef(entry->second.shape)) {
        problems.push_back(absl::StrCat("misshaped: ", entry->first, " (expected [",
                                        absl::StrJoin(parameter.sizes(), ", "), "], found [",
                                        absl::StrJoin(entry->second.shape, ", "), "])"));
        continue;
      }
      RLHF_ASSIGN_OR_RETURN(const torch::Tensor stored, ReadTensor({file, &entry->second}));
      torch::Tensor target = parameter;
      target.copy_(stored);
    }
    for (const auto& [name, info] : file->tensors()) {
      if (used.count(name) == 0) problems.push_back(absl::StrCat("extra: ", name));
    }
    if (problems.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(dir, ": the adapters do not fit the model; ", absl::StrJoin(problems, "; ")));
  });
}

}  // namespace rlhf::model
