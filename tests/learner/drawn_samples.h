// Samples that a policy itself generates.
#pragma once

#include <functional>
#include <vector>

#include "model/sampler.h"
#include "model/transformer.h"
#include "rlhf/v1/data.pb.h"

namespace rlhf::learner {

// Two tokens after a prompt, drawn by the CPU; the score is of the first one.
inline std::vector<v1::Sample> DrawSamples(const model::Transformer& policy, int64_t step, int n,
                                           const std::function<double(int32_t first)>& score) {
  const torch::NoGradGuard no_grad;
  std::vector<v1::Sample> samples;
  const std::vector<int32_t> prompt{1, 70, 80};
  for (int i = 0; i < n; ++i) {
    v1::Sample& sample = samples.emplace_back();
    sample.mutable_id()->set_step(step);
    sample.mutable_id()->set_ordinal(i);
    std::vector<int32_t> tokens = prompt;
    for (uint32_t t = 0; t < 2; ++t) {
      const torch::Tensor hidden = policy.Hidden(model::PackedBatch::FromSequences({tokens}));
      model::NoiseKey key;
      key.seed = 5;
      key.step = static_cast<uint32_t>(step);
      key.ordinal = static_cast<uint32_t>(i);
      const auto drawn = model::Sample(policy.Logits(hidden.narrow(0, hidden.size(0) - 1, 1)), {{}}, {key}, {t})[0];
      tokens.push_back(drawn.id);
      sample.add_response_tokens(drawn.id);
      sample.add_behaviour_log_probs(drawn.log_prob);
      sample.mutable_score()->add_reference_log_probs(drawn.log_prob);
    }
    sample.mutable_prompt_tokens()->Add(prompt.begin(), prompt.end());
    sample.set_finish_reason(v1::END_OF_TEXT);
    sample.mutable_score()->set_total(score(sample.response_tokens(0)));
  }
  return samples;
}

}  // namespace rlhf::learner
