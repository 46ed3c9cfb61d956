// A reward model's score.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "reward_server/components/interface.h"
#include "reward_server/model_cache.h"

namespace rlhf::reward {

// The normalised score of the model `digest`, read at its end of text, which every answer is given (EndForReward) in
// place of the policy's own, however it ended. A model with a head for each criterion gives the heads' normalised
// scores as parts; `criteria` may weigh them anew. `policy`: whose tokens samples have; where the model's tokenizer is
// another, their texts are tokenized again. InvalidArgument of a sample that is longer than the model's context.
// `models` outlives it.
std::unique_ptr<Component> MakeRewardModel(ModelCache* models, const std::string& digest, const std::string& policy,
                                           const std::map<std::string, double>& criteria = {});

}  // namespace rlhf::reward
