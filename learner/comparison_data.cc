#include "learner/comparison_data.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "artifact/dataset.h"
#include "artifact/digest.h"
#include "artifact/prompt.h"
#include "common/rounded_sum.h"
#include "common/status_util.h"
#include "model/split_by_tokens.h"

namespace rlhf::learner {
namespace {

// In [0, 1), by the prompt alone.
double Place(const std::string& prompt, uint64_t seed) {
  uint64_t bits = 0;
  (void)absl::SimpleHexAtoi(artifact::Sha256Hex(absl::StrCat(seed, "/", prompt)).substr(0, 12), &bits);
  return static_cast<double>(bits) * 0x1.0p-48;
}

// Which answer a criterion's ratings say is better; see ComparisonPair.
double Rated(const artifact::ComparisonRecord& record, const std::string& criterion, bool leave_out_ties) {
  const auto ratings = record.ratings.find(criterion);
  if (ratings == record.ratings.end()) return std::numeric_limits<double>::quiet_NaN();
  const auto [chosen, rejected] = ratings->second;
  if (chosen == rejected && leave_out_ties) return std::numeric_limits<double>::quiet_NaN();
  return chosen == rejected ? 0.5 : chosen > rejected ? 1 : 0;
}

}  // namespace

void CombineRatings(const std::map<std::string, double>& criteria, artifact::ComparisonRecord* record) {
  RoundedSum chosen, rejected;
  for (const auto& [criterion, weight] : criteria) {
    const auto ratings = record->ratings.find(criterion);
    if (ratings == record->ratings.end()) return;
    chosen.Add(weight * ratings->second.first);
    rejected.Add(weight * ratings->second.second);
  }
  if (criteria.empty()) return;
  const double difference = Difference(chosen, rejected);
  record->tie = difference == 0;
  if (difference >= 0) return;
  std::swap(record->chosen, record->rejected);
  record->margin = record->strength = 0;
  for (auto& [criterion, ratings] : record->ratings) std::swap(ratings.first, ratings.second);
}

absl::StatusOr<ComparisonData> ComparisonData::Load(const std::string& path, const artifact::Tokenizer& tokenizer,
                                                    int64_t context, const ComparisonOptions& options) {
  RLHF_ASSIGN_OR_RETURN(std::vector<artifact::ComparisonRecord> records, artifact::ReadComparisonData(path));
  ComparisonData data;
  std::map<std::string, int64_t> prompts;
  for (size_t i = 0; i < records.size(); ++i) {
    artifact::ComparisonRecord& record = records[i];
    CombineRatings(options.criteria, &record);
    if (record.tie && options.leave_out_ties && !options.heads) continue;
    ComparisonPair pair;
    RLHF_ASSIGN_OR_RETURN(pair.chosen,
                          artifact::EncodeForReward(tokenizer, record.prompt, record.messages, record.chosen, context));
    RLHF_ASSIGN_OR_RETURN(
        pair.rejected, artifact::EncodeForReward(tokenizer, record.prompt, record.messages, record.rejected, context));
    if (options.margin_by_strength > 0 && !(record.strength >= 0 && record.strength <= 1)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": comparison ", i + 1, " has strength ", record.strength, "; expected 0 to 1"));
    }
    const size_t longest = std::max(pair.chosen.size(), pair.rejected.size());
    if (static_cast<int64_t>(longest) > context) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": comparison ", i + 1, " has ", longest,
                                                     " tokens; expected at most ", context, ", the model's context"));
    }
    pair.tie = record.tie;
    pair.margin = record.margin + options.margin_by_strength * record.strength;
    if (options.heads) {
      for (const auto& [criterion, weight] : options.criteria)
        pair.rated.push_back(Rated(record, criterion, options.leave_out_ties));
    }
    if (!record.category.empty()) pair.slices.push_back(absl::StrCat("category=", record.category));
    for (const auto& [tag, value] : record.tags) pair.slices.push_back(absl::StrCat(tag, "=", value));
    pair.prompt = prompts.emplace(record.prompt, static_cast<int64_t>(prompts.size())).first->second;
    const bool held_out = Place(record.prompt, options.seed) < options.held_out_fraction;
    (held_out ? data.held_out : data.training).push_back(std::move(pair));
  }
  if (data.training.empty())
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the split leaves no comparison to train on; lower held_out_fraction",
                     options.leave_out_ties ? ", train on ties too" : "", " or add data"));
  size_t head = 0;
  for (const auto& [criterion, weight] : options.heads ? options.criteria : std::map<std::string, double>()) {
    const bool taught = std::any_of(data.training.begin(), data.training.end(),
                                    [&](const ComparisonPair& pair) { return !std::isnan(pair.rated[head]); });
    if (!taught) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": expected comparisons whose answers are rated by \"",
                                                     criterion, "\", found none to train its head on"));
    }
    ++head;
  }
  return data;
}

torch::Tensor SequenceRewards(const model::Transformer& model, const std::vector<std::vector<int32_t>>& sequences) {
  const model::PackedBatch batch = model::PackedBatch::FromSequences(sequences, model.device());
  return model.Scalar(model.Hidden(batch, batch.LastRows()));
}

std::vector<double> ScoreSequences(const model::Transformer& model, const std::vector<std::vector<int32_t>>& sequences,
                                   int64_t max_tokens) {
  const torch::NoGradGuard no_grad;
  std::vector<double> scores;
  for (const auto& [begin, end] : model::SplitByTokens(sequences, max_tokens)) {
    const std::vector<std::vector<int32_t>> part(sequences.begin() + static_cast<std::ptrdiff_t>(begin),
                                                 sequences.begin() + static_cast<std::ptrdiff_t>(end));
    const torch::Tensor rewards = SequenceRewards(model, part).to(torch::kCPU, torch::kFloat64).contiguous();
    scores.insert(scores.end(), rewards.data_ptr<double>(), rewards.data_ptr<double>() + rewards.numel());
  }
  return scores;
}

}  // namespace rlhf::learner
