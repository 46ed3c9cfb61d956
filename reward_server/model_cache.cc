#include "reward_server/model_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/status_util.h"

namespace rlhf::reward {

absl::StatusOr<LoadedModel*> ModelCache::Get(const std::string& digest, model::HeadKind head) {
  const std::string key = absl::StrCat(digest, head == model::HeadKind::kLm ? "/lm" : "/scalar");
  auto found = models_.find(key);
  if (found == models_.end()) {
    RLHF_ASSIGN_OR_RETURN(std::unique_ptr<LoadedModel> loaded, Load(digest, head));
    while (static_cast<int>(models_.size()) >= options_.max_models) {
      models_.erase(std::min_element(models_.begin(), models_.end(), [](const auto& a, const auto& b) {
        return a.second->last_use < b.second->last_use;
      }));
    }
    found = models_.emplace(key, std::move(loaded)).first;
  }
  found->second->last_use = ++uses_;
  RLHF_RETURN_IF_ERROR(found->second->model->SetDeterministic(deterministic_));
  return found->second.get();
}

absl::StatusOr<std::string> ModelCache::TokenizerJson(const std::string& digest) {
  RLHF_ASSIGN_OR_RETURN(const std::string dir, artifacts_->Fetch(digest));
  return ReadFile(dir + "/tokenizer.json");
}

absl::StatusOr<std::unique_ptr<LoadedModel>> ModelCache::Load(const std::string& digest, model::HeadKind head) {
  RLHF_ASSIGN_OR_RETURN(const std::string dir, artifacts_->Fetch(digest));
  auto loaded = std::make_unique<LoadedModel>();
  model::LoadOptions load;
  load.dtype = options_.dtype;
  load.device = options_.device;
  load.head = head;
  load.join_projections = true;
  RLHF_ASSIGN_OR_RETURN(loaded->model, model::LoadModel(dir, load));
  RLHF_ASSIGN_OR_RETURN(loaded->tokenizer, artifact::Tokenizer::Load(dir));
  RLHF_ASSIGN_OR_RETURN(loaded->tokenizer_json, ReadFile(dir + "/tokenizer.json"));
  if (head == model::HeadKind::kScalar) {
    RLHF_ASSIGN_OR_RETURN(loaded->normalization, model::LoadRewardNormalization(dir));
    RLHF_RETURN_IF_ERROR(model::CheckRewardHeads(*loaded->model, loaded->normalization, digest));
  }
  return loaded;
}

}  // namespace rlhf::reward
