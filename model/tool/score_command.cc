#include <iostream>
#include <string>

#include <c10/core/InferenceMode.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/model_config.h"
#include "model/guard.h"
#include "model/log_probs.h"
#include "model/tool/commands.h"
#include "model/weights_io.h"

namespace rlhf::model::tool {
namespace {

using nlohmann::json;

absl::StatusOr<std::vector<int32_t>> ReadIds(const std::string& line, int64_t number, const Transformer& model,
                                             size_t least) {
  const auto bad = [&](const std::string& expected) {
    return absl::InvalidArgumentError(
        absl::StrCat("standard input:", number, ": expected ", expected, ", found ", line.substr(0, 60)));
  };
  const json parsed = json::parse(line, nullptr, false);
  if (!parsed.is_array() || parsed.size() < least) return bad(absl::StrCat("a JSON array of at least ", least, " ids"));
  std::vector<int32_t> ids;
  for (const json& id : parsed) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= model.config().vocab_size) {
      return bad(absl::StrCat("ids from 0 to ", model.config().vocab_size - 1));
    }
    ids.push_back(id.get<int32_t>());
  }
  if (static_cast<int64_t>(ids.size()) > model.config().max_position_embeddings) {
    return bad(absl::StrCat("at most ", model.config().max_position_embeddings, " ids, the model's context"));
  }
  return ids;
}

}  // namespace

absl::Status Score(const std::string& model_dir) {
  const auto config = artifact::LoadModelConfig(model_dir);
  if (!config.ok()) return config.status();
  const bool reward_model = config->num_labels > 0;
  LoadOptions options;
  options.head = reward_model ? HeadKind::kScalar : HeadKind::kLm;
  const auto model = LoadModel(model_dir, options);
  if (!model.ok()) return model.status();
  const auto normalization = LoadRewardNormalization(model_dir);
  if (!normalization.ok()) return normalization.status();
  if (reward_model) {
    if (absl::Status heads = CheckRewardHeads(**model, *normalization, model_dir); !heads.ok()) return heads;
  }
  return Guard("score", [&]() -> absl::Status {
    const c10::InferenceMode inference;
    int64_t number = 0;
    for (std::string line; std::getline(std::cin, line);) {
      const auto ids = ReadIds(line, ++number, **model, reward_model ? 1 : 2);
      if (!ids.ok()) return ids.status();
      const PackedBatch batch = PackedBatch::FromSequences({*ids});
      json out;
      if (reward_model) {
        const torch::Tensor outputs =
            (*model)->Scalar((*model)->Hidden(batch, batch.LastRows())).to(torch::kFloat64).contiguous();
        const double* raw = outputs.data_ptr<double>();
        out["reward"] = normalization->Apply(raw);
        for (size_t h = 0; h < normalization->heads.size(); ++h)
          out["criteria"][normalization->heads[h].criterion] = normalization->heads[h].Normalize(raw[h]);
      } else {
        const ResponseIndex index = IndexResponses(batch, {1});
        const torch::Tensor log_probs = ResponseLogProbs(**model, batch, index).log_probs.contiguous();
        out["logprobs"] =
            std::vector<float>(log_probs.data_ptr<float>(), log_probs.data_ptr<float>() + log_probs.numel());
      }
      std::cout << out.dump() << "\n";
    }
    return absl::OkStatus();
  });
}

}  // namespace rlhf::model::tool
