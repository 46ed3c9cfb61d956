// Comparisons as pairs of token sequences, split into training and held-out by prompt.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "artifact/tokenizer.h"
#include "model/transformer.h"

namespace rlhf::learner {

struct ComparisonPair {
  std::vector<int32_t> chosen, rejected;  // prompt, response, end of text
  bool tie = false;
  double margin = 0;
  std::vector<std::string> slices;  // "category=known", "pair=correct over abstention"
};

struct ComparisonData {
  std::vector<ComparisonPair> training, held_out;
  // InvalidArgument names a record that does not fit the context. A prompt's comparisons are all on one side of the
  // split.
  static absl::StatusOr<ComparisonData> Load(const std::string& path, const artifact::Tokenizer& tokenizer,
                                             int64_t context, double held_out_fraction, uint64_t seed);
};

// Prompt and response as a reward model reads them.
absl::StatusOr<std::vector<int32_t>> EncodeForReward(const artifact::Tokenizer& tokenizer, const std::string& prompt,
                                                     const std::vector<artifact::ChatMessage>& messages,
                                                     const std::string& response, bool ended);
// Rewards at the last tokens: float32 [N], with gradient when enabled.
torch::Tensor SequenceRewards(const model::Transformer& model, const std::vector<std::vector<int32_t>>& sequences);
// The same without gradient, for any number of sequences, packed into at most max_tokens at a time.
std::vector<double> ScoreSequences(const model::Transformer& model, const std::vector<std::vector<int32_t>>& sequences,
                                   int64_t max_tokens);

}  // namespace rlhf::learner
