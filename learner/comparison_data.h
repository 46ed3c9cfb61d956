// Comparisons as pairs of token sequences, split into training and held-out by prompt.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "artifact/dataset.h"
#include "artifact/tokenizer.h"
#include "model/transformer.h"

namespace rlhf::learner {

struct ComparisonPair {
  std::vector<int32_t> chosen, rejected;  // as EncodeForReward gives them
  bool tie = false;
  double margin = 0;  // what chosen has to be ahead by in the loss
  // With heads, by criterion in the order of their names: 1 where the ratings say the chosen answer is better, 0 the
  // rejected one, 0.5 neither; NaN without ratings.
  std::vector<double> rated;
  std::vector<std::string> slices;  // "category=known", "pair=correct over abstention"
  int64_t prompt = -1;              // which of the data's it is of; below 0: of one that no other pair is of
};

struct ComparisonOptions {
  double held_out_fraction = 0;
  uint64_t seed = 0;                       // of the split
  std::map<std::string, double> criteria;  // weights by name
  bool heads = false;                      // each criterion's ratings are kept
  bool leave_out_ties = false;             // with heads: equal ratings
  double margin_by_strength = 0;           // added to a pair's margin for each unit of strength
};

struct ComparisonData {
  std::vector<ComparisonPair> training, held_out;
  // InvalidArgument names a record that does not fit the context. A prompt's comparisons are all on one side of the
  // split. With criteria the comparison's ratings say which answer is better: see CombineRatings.
  // With heads every criterion's ratings are kept, and InvalidArgument names one that no training comparison has.
  static absl::StatusOr<ComparisonData> Load(const std::string& path, const artifact::Tokenizer& tokenizer,
                                             int64_t context, const ComparisonOptions& options);
};

// Turns a comparison round, or makes it a tie, by the sign of Σ weight · (rating of chosen − rating of rejected).
// Leaves it as it is when it lacks the rating of a criterion, or there are no criteria. Ratings turn round with it;
// margin and strength, which are the preference's, become 0.
void CombineRatings(const std::map<std::string, double>& criteria, artifact::ComparisonRecord* record);

// Rewards at the last tokens: float32 [N], or [N, outputs] of a model with several; with gradient when enabled.
torch::Tensor SequenceRewards(const model::Transformer& model, const std::vector<std::vector<int32_t>>& sequences);
// The same without gradient, for any number of sequences, packed into at most max_tokens at a time; a sequence's
// outputs follow each other.
std::vector<double> ScoreSequences(const model::Transformer& model, const std::vector<std::vector<int32_t>>& sequences,
                                   int64_t max_tokens);

}  // namespace rlhf::learner
