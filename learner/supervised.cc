#include "learner/supervised.h"

#include "absl/strings/str_cat.h"
#include "artifact/dataset.h"
#include "artifact/prompt.h"
#include "common/status_util.h"
#include "model/log_probs.h"

namespace rlhf::learner {

absl::StatusOr<SupervisedData> SupervisedData::Load(const std::string& path, const artifact::Tokenizer& tokenizer,
                                                    int64_t context, double prompt_loss_weight) {
  RLHF_ASSIGN_OR_RETURN(const std::vector<artifact::SftRecord> records, artifact::ReadSftData(path));
  if (!tokenizer.eos_id())
    return absl::InvalidArgumentError(
        "the model's tokenizer has no end-of-text token: name one in tokenizer_config.json");
  SupervisedData data;
  data.prompt_weight_ = prompt_loss_weight;
  for (size_t i = 0; i < records.size(); ++i) {
    SupervisedExample example;
    RLHF_ASSIGN_OR_RETURN(example.tokens, artifact::EncodePrompt(tokenizer, records[i].prompt, records[i].messages));
    example.response_begin = static_cast<int64_t>(example.tokens.size());
    RLHF_ASSIGN_OR_RETURN(const std::vector<int32_t> response,
                          tokenizer.Encode(records[i].response, {.add_special_tokens = false}));
    example.tokens.insert(example.tokens.end(), response.begin(), response.end());
    example.tokens.push_back(*tokenizer.eos_id());
    const auto length = static_cast<int64_t>(example.tokens.size());
    if (example.response_begin < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": record ", i + 1, ": the prompt has no token, and the tokenizer puts none before it"));
    }
    if (length > context) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": record ", i + 1, " has ", length,
                                                     " tokens; expected at most ", context,
                                                     ", the model's context: shorten it"));
    }
    data.lengths_.push_back(length);
    data.examples_.push_back(std::move(example));
  }
  return data;
}

double SupervisedData::Weight(const std::vector<size_t>& items) const {
  double weight = 0;
  for (const size_t item : items) {
    const SupervisedExample& example = examples_[item];
    weight += prompt_weight_ * static_cast<double>(example.response_begin - 1) +
              static_cast<double>(lengths_[item] - example.response_begin);
  }
  return weight;
}

torch::Tensor SupervisedData::WeightedNll(const model::Transformer& model, const std::vector<size_t>& items) const {
  std::vector<std::vector<int32_t>> sequences;
  std::vector<int64_t> begins;
  std::vector<float> weights;
  for (const size_t item : items) {
    const SupervisedExample& example = examples_[item];
    sequences.push_back(example.tokens);
    const int64_t begin = prompt_weight_ > 0 ? 1 : example.response_begin;
    begins.push_back(begin);
    for (int64_t t = begin; t < lengths_[item]; ++t)
      weights.push_back(t < example.response_begin ? static_cast<float>(prompt_weight_) : 1.0F);
  }
  const model::PackedBatch batch = model::PackedBatch::FromSequences(sequences, model.device());
  const model::ResponseIndex index = model::IndexResponses(batch, begins);
  const torch::Tensor log_probs = model::ResponseLogProbs(model, batch, index).log_probs;
  return -(log_probs * torch::tensor(weights, torch::kFloat32).to(model.device())).sum();
}

}  // namespace rlhf::learner
