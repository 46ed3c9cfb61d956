#include "learner/ppo_batch.h"

#include "absl/strings/str_cat.h"

namespace rlhf::learner {

absl::StatusOr<PpoBatch> PpoBatch::FromSamples(const std::vector<v1::Sample>& samples, const v1::PpoSpec& spec,
                                               int64_t context) {
  PpoBatch batch;
  std::vector<float> behaviour, reference;
  for (const v1::Sample& sample : samples) {
    const auto problem = [&](const std::string& what) {
      return absl::InvalidArgumentError(absl::StrCat("sample ", sample.id().step(), "/", sample.id().ordinal(), "/",
                                                     sample.id().index(), ": ", what));
    };
    const int count = sample.response_tokens_size();
    if (sample.prompt_tokens().empty() || count == 0) return problem("expected prompt and response tokens, found none");
    if (sample.behaviour_log_probs_size() != count)
      return problem(
          absl::StrCat("expected ", count, " behaviour log-probabilities, found ", sample.behaviour_log_probs_size()));
    if (!spec.has_lora() && sample.score().reference_log_probs_size() != count) {
      return problem(absl::StrCat("expected ", count, " reference log-probabilities, found ",
                                  sample.score().reference_log_probs_size()));
    }
    const int64_t length = sample.prompt_tokens_size() + count;
    if (length > context) return problem(absl::StrCat("it has ", length, " tokens; the policy's context is ", context));
    std::vector<int32_t>& tokens =
        batch.sequences.emplace_back(sample.prompt_tokens().begin(), sample.prompt_tokens().end());
    tokens.insert(tokens.end(), sample.response_tokens().begin(), sample.response_tokens().end());
    batch.offsets.push_back(static_cast<int64_t>(behaviour.size()));
    batch.lengths.push_back(length);
    batch.response_begin.push_back(sample.prompt_tokens_size());
    batch.counts.push_back(count);
    batch.scores.push_back(sample.score().total() -
                           (sample.finish_reason() == v1::MAX_TOKENS ? spec.missing_eos_penalty() : 0));
    behaviour.insert(behaviour.end(), sample.behaviour_log_probs().begin(), sample.behaviour_log_probs().end());
    if (spec.has_lora()) continue;
    reference.insert(reference.end(), sample.score().reference_log_probs().begin(),
                     sample.score().reference_log_probs().end());
  }
  if (batch.counts.empty()) return absl::InvalidArgumentError("the step's batch has no sample");
  batch.behaviour_log_probs = torch::tensor(behaviour, torch::kFloat32);
  if (!spec.has_lora()) batch.reference_log_probs = torch::tensor(reference, torch::kFloat32);
  return batch;
}

int64_t PpoBatch::RowsOf(const std::vector<size_t>& samples) const {
  int64_t total = 0;
  for (const size_t sample : samples) total += counts[sample];
  return total;
}

torch::Tensor PpoBatch::RowIndex(const std::vector<size_t>& samples) const {
  std::vector<int64_t> index;
  index.reserve(static_cast<size_t>(RowsOf(samples)));
  for (const size_t sample : samples) {
    for (int64_t t = 0; t < counts[sample]; ++t) index.push_back(offsets[sample] + t);
  }
  return torch::tensor(index, torch::kInt64);
}

PpoForward PackSamples(const PpoBatch& batch, const std::vector<size_t>& samples, torch::Device device) {
  std::vector<std::vector<int32_t>> sequences;
  std::vector<int64_t> begins;
  for (const size_t sample : samples) {
    sequences.push_back(batch.sequences[sample]);
    begins.push_back(batch.response_begin[sample]);
  }
  PpoForward forward;
  forward.packed = model::PackedBatch::FromSequences(sequences, device);
  forward.index = model::IndexResponses(forward.packed, begins);
  return forward;
}

}  // namespace rlhf::learner
