// A step's samples as packed rows. Rows are response tokens [N], in issue order; all ranks hold the whole batch.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "model/libtorch.h"
#include "model/log_probs.h"
#include "model/transformer.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::learner {

struct PpoBatch {
  std::vector<std::vector<int32_t>> sequences;  // prompt and response tokens
  std::vector<int64_t> lengths;                 // of sequences
  std::vector<int64_t> response_begin;
  std::vector<int64_t> counts;        // response tokens
  std::vector<int64_t> offsets;       // first row of each sample
  std::vector<double> scores;         // total score, less the missing end's penalty
  torch::Tensor behaviour_log_probs;  // float32 [N], CPU
  torch::Tensor reference_log_probs;  // float32 [N], CPU; with LoRA the trainer fills it in

  int64_t rows() const { return counts.empty() ? 0 : offsets.back() + counts.back(); }
  size_t size() const { return counts.size(); }
  int64_t RowsOf(const std::vector<size_t>& samples) const;
  // The rows of some samples, in their order: int64 [n].
  torch::Tensor RowIndex(const std::vector<size_t>& samples) const;

  // InvalidArgument names a sample that is empty, longer than the context, or without the log-probabilities that
  // training needs.
  static absl::StatusOr<PpoBatch> FromSamples(const std::vector<v1::Sample>& samples, const v1::PpoSpec& spec,
                                              int64_t context);
};

// One packed forward pass over some samples' sequences: which hidden rows predict their response tokens, and those
// tokens.
struct PpoForward {
  model::PackedBatch packed;
  model::ResponseIndex index;
};
PpoForward PackSamples(const PpoBatch& batch, const std::vector<size_t>& samples, torch::Device device);

}  // namespace rlhf::learner
