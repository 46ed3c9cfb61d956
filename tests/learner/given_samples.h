// Jobs on one tiny model, alone, PPO's with samples that are given; and what their steps must find, by the plain
// formulas: a sequence at a time, every logit there.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "learner/trainer.h"
#include "tests/learner/specs.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::learner {

inline std::vector<int32_t> TokensOf(const v1::Sample& sample) {
  std::vector<int32_t> tokens(sample.prompt_tokens().begin(), sample.prompt_tokens().end());
  tokens.insert(tokens.end(), sample.response_tokens().begin(), sample.response_tokens().end());
  return tokens;
}

// Of the samples' response tokens: float32 [N], with gradient where that is enabled.
inline torch::Tensor LogProbsByHand(const model::Transformer& policy, const std::vector<v1::Sample>& samples,
                                    double temperature = 1) {
  std::vector<torch::Tensor> out;
  for (const v1::Sample& sample : samples) {
    const torch::Tensor hidden = policy.Hidden(model::PackedBatch::FromSequences({TokensOf(sample)}));
    const torch::Tensor all = torch::log_softmax(policy.Logits(hidden) / temperature, -1);
    for (int t = 0; t < sample.response_tokens_size(); ++t)
      out.push_back(all[sample.prompt_tokens_size() + t - 1][sample.response_tokens(t)]);
  }
  return torch::stack(out);
}

// What a critic says before each response token: as LogProbsByHand.
inline torch::Tensor ValuesByHand(const model::Transformer& critic, const std::vector<v1::Sample>& samples) {
  std::vector<torch::Tensor> out;
  for (const v1::Sample& sample : samples) {
    const torch::Tensor all =
        critic.Scalar(critic.Hidden(model::PackedBatch::FromSequences({TokensOf(sample)}))).view({-1});
    for (int t = 0; t < sample.response_tokens_size(); ++t) out.push_back(all[sample.prompt_tokens_size() + t - 1]);
  }
  return torch::stack(out);
}

// The norm over what trains of a model.
inline double GradientNorm(const torch::Tensor& loss, const model::Transformer& model) {
  std::vector<torch::Tensor> parameters;
  for (const auto& [name, parameter] : model.trained_parameters()) parameters.push_back(parameter);
  double squares = 0;
  for (const torch::Tensor& gradient : torch::autograd::grad({loss}, parameters, {}, {}, false, true)) {
    if (gradient.defined()) squares += gradient.to(torch::kFloat64).square().sum().item<double>();
  }
  return std::sqrt(squares);
}

// Samples with responses of these lengths, all ended, whose log-probabilities by sampler and reference are the
// policy's own.
inline std::vector<v1::Sample> GivenSamples(const model::Transformer& policy, const std::vector<int>& lengths,
                                            double temperature = 1) {
  std::vector<v1::Sample> samples;
  for (size_t i = 0; i < lengths.size(); ++i) {
    v1::Sample& sample = samples.emplace_back();
    sample.mutable_id()->set_step(1);
    sample.mutable_id()->set_ordinal(static_cast<int64_t>(i));
    for (const size_t token : {size_t{1}, 70 + i, size_t{80}}) sample.add_prompt_tokens(static_cast<int32_t>(token));
    for (int t = 0; t < lengths[i]; ++t) sample.add_response_tokens(60 + (static_cast<int>(i) * 37 + t * 53) % 200);
    sample.set_finish_reason(v1::END_OF_TEXT);
    sample.mutable_score()->set_total(std::sin(1.7 * static_cast<double>(i)));
  }
  const torch::NoGradGuard no_grad;
  const torch::Tensor log_probs = LogProbsByHand(policy, samples, temperature);
  int64_t row = 0;
  for (v1::Sample& sample : samples) {
    for (int t = 0; t < sample.response_tokens_size(); ++t) {
      const float log_prob = log_probs[row++].item<float>();
      sample.add_behaviour_log_probs(log_prob);
      sample.mutable_score()->add_reference_log_probs(log_prob);
    }
  }
  return samples;
}

class TinyJobTest : public testing::Test {
 protected:
  void SetUp() override {
    MakeTinyModel(dir_.File("model"), 1);
    alone_ = MakeSingleRank();
  }
  absl::StatusOr<std::unique_ptr<Trainer>> Make(const v1::JobSpec& spec) {
    TrainerInputs inputs;
    inputs.spec = spec;
    inputs.local = {
        {"model", dir_.File("model")}, {"data", dir_.File("data.jsonl")}, {"samples", dir_.File("samples.jsonl")}};
    auto trainer = Trainer::Create(inputs);
    if (trainer.ok()) (*trainer)->SetCollective(alone_.get());
    return trainer;
  }
  std::vector<v1::Sample> Samples(const std::vector<int>& lengths, double temperature = 1) {
    const auto policy = model::LoadModel(dir_.File("model"));
    EXPECT_TRUE(policy.ok()) << policy.status();
    return GivenSamples(**policy, lengths, temperature);
  }

  ScratchDir dir_;
  std::unique_ptr<Collective> alone_;
};

}  // namespace rlhf::learner
