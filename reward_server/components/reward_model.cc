#include "reward_server/components/reward_model.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include <c10/core/InferenceMode.h>

#include "absl/strings/str_cat.h"
#include "artifact/prompt.h"
#include "artifact/sample_digest.h"
#include "common/status_util.h"
#include "model/guard.h"
#include "model/split_by_tokens.h"

namespace rlhf::reward {
namespace {

class RewardModelScore final : public Component {
 public:
  RewardModelScore(ModelCache* models, std::string digest, std::string policy, std::map<std::string, double> criteria)
      : models_(models), digest_(std::move(digest)), policy_(std::move(policy)), criteria_(std::move(criteria)) {}

  std::vector<absl::StatusOr<double>> Score(const std::vector<const v1::Sample*>& samples) override {
    std::vector<absl::StatusOr<double>> values(samples.size(), 0.0);
    const absl::Status status = model::Guard("reward model", [&] { return Compute(samples, &values); });
    if (!status.ok()) return std::vector<absl::StatusOr<double>>(samples.size(), status);
    return values;
  }
  const std::vector<std::vector<double>>* parts() const override { return parts_.empty() ? nullptr : &parts_; }
  std::string PartName(size_t part) const override { return names_[part]; }

 private:
  // A status of all samples is the model's; one that only a sample has goes to its place.
  absl::Status Compute(const std::vector<const v1::Sample*>& samples, std::vector<absl::StatusOr<double>>* values) {
    const c10::InferenceMode inference;
    RLHF_ASSIGN_OR_RETURN(LoadedModel * loaded, models_->Get(digest_, model::HeadKind::kScalar));
    const std::vector<model::RewardHead>& heads = loaded->normalization.heads;
    RLHF_RETURN_IF_ERROR(CheckCriteria(heads));
    parts_.assign(heads.size(), std::vector<double>(samples.size(), 0));
    names_.clear();
    for (const model::RewardHead& head : heads) names_.push_back(head.criterion);
    RLHF_ASSIGN_OR_RETURN(const bool same_tokens, SameTokens(*loaded));
    std::vector<std::vector<int32_t>> sequences;
    std::vector<size_t> places;  // of their samples
    for (size_t i = 0; i < samples.size(); ++i) {
      absl::StatusOr<std::vector<int32_t>> tokens = TokensOf(*samples[i], *loaded, same_tokens);
      if (!tokens.ok()) {
        (*values)[i] = tokens.status();
        continue;
      }
      sequences.push_back(*std::move(tokens));
      places.push_back(i);
    }
    auto place = places.begin();
    for (const auto& [begin, end] : model::SplitByTokens(sequences, models_->options().batch_tokens)) {
      const std::vector<std::vector<int32_t>> part(sequences.begin() + static_cast<int64_t>(begin),
                                                   sequences.begin() + static_cast<int64_t>(end));
      const model::PackedBatch batch = model::PackedBatch::FromSequences(part, models_->options().device);
      const torch::Tensor rows = loaded->model->Hidden(batch, batch.LastRows());
      const torch::Tensor raw = loaded->model->Scalar(rows).to(torch::kCPU, torch::kFloat64).contiguous();
      const auto width = static_cast<int64_t>(std::max<size_t>(1, heads.size()));
      for (int64_t i = 0; i < raw.numel(); i += width, ++place) {
        const double* outputs = raw.data_ptr<double>() + i;
        (*values)[*place] = criteria_.empty() ? loaded->normalization.Apply(outputs) : Weighted(heads, outputs);
        for (size_t h = 0; h < heads.size(); ++h) parts_[h][*place] = heads[h].Normalize(outputs[h]);
      }
    }
    return absl::OkStatus();
  }

  // Prompt and response as the reward model reads them; InvalidArgument when they are more than its context.
  absl::StatusOr<std::vector<int32_t>> TokensOf(const v1::Sample& sample, const LoadedModel& loaded,
                                                bool same_tokens) const {
    const int64_t context = loaded.model->config().max_position_embeddings;
    std::vector<int32_t> tokens;
    if (same_tokens) {
      // Of the policy's own ends of text there may be several; the reward model was trained on one.
      absl::Span<const int32_t> answer = sample.response_tokens();
      if (!answer.empty() && (sample.finish_reason() == v1::END_OF_TEXT || loaded.tokenizer->EndsText(answer.back())))
        answer.remove_suffix(1);
      tokens = artifact::EndForReward(*loaded.tokenizer, sample.prompt_tokens(), answer, context);
    } else {
      // Another vocabulary: the same text in the reward model's own tokens.
      RLHF_ASSIGN_OR_RETURN(
          tokens, artifact::EncodeForReward(*loaded.tokenizer, sample.prompt().text(),
                                            artifact::MessagesOf(sample.prompt()), sample.response_text(), context));
    }
    if (tokens.empty() || static_cast<int64_t>(tokens.size()) > context) {
      return absl::InvalidArgumentError(absl::StrCat("reward model ", digest_, ": sample ",
                                                     artifact::SampleName(sample.id()), " has ", tokens.size(),
                                                     " tokens; expected 1 to ", context));
    }
    return tokens;
  }

  absl::Status CheckCriteria(const std::vector<model::RewardHead>& heads) const {
    for (const auto& [criterion, weight] : criteria_) {
      const bool known = std::any_of(heads.begin(), heads.end(),
                                     [&, name = criterion](const auto& head) { return head.criterion == name; });
      if (known) continue;
      std::string names;
      for (const model::RewardHead& head : heads) absl::StrAppend(&names, names.empty() ? "" : ", ", head.criterion);
      return absl::InvalidArgumentError(absl::StrCat(
          "criteria: reward model ", digest_, " has no head for \"", criterion, "\"; expected one of its criteria (",
          names.empty() ? "it has none: train it with criterion_heads" : names, ")"));
    }
    return absl::OkStatus();
  }
  double Weighted(const std::vector<model::RewardHead>& heads, const double* outputs) const {
    double sum = 0;
    for (size_t h = 0; h < heads.size(); ++h) {
      if (const auto weight = criteria_.find(heads[h].criterion); weight != criteria_.end())
        sum += weight->second * heads[h].Normalize(outputs[h]);
    }
    return sum;
  }
  absl::StatusOr<bool> SameTokens(const LoadedModel& reward_model) {
    if (policy_ == digest_) return true;
    if (same_tokens_) return *same_tokens_;
    RLHF_ASSIGN_OR_RETURN(const std::string json, models_->TokenizerJson(policy_));
    same_tokens_ = json == reward_model.tokenizer_json;
    return *same_tokens_;
  }

  ModelCache* const models_;
  const std::string digest_, policy_;
  const std::map<std::string, double> criteria_;
  std::vector<std::vector<double>> parts_;  // by head and sample
  std::vector<std::string> names_;
  std::optional<bool> same_tokens_;
};

}  // namespace

std::unique_ptr<Component> MakeRewardModel(ModelCache* models, const std::string& digest, const std::string& policy,
                                           const std::map<std::string, double>& criteria) {
  return std::make_unique<RewardModelScore>(models, digest, policy, criteria);
}

}  // namespace rlhf::reward
