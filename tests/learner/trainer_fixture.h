// A tiny model, data and samples for trainers of one rank.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "common/durable_file.h"
#include "learner/collective.h"
#include "learner/trainer.h"
#include "tests/learner/drawn_samples.h"
#include "tests/learner/specs.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::learner {

class TrainerTest : public testing::Test {
 protected:
  void SetUp() override {
    MakeTinyModel(dir_.File("model"), 1);
    ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"),
                                 "{\"prompt\":\"the cat\",\"response\":\" sat on the mat\"}\n{\"prompt\":\"the "
                                 "dog\",\"response\":\" sat on the log\"}\n"
                                 "{\"prompt\":\"red\",\"response\":\" blue green\"}\n")
                    .ok());
    alone_ = MakeSingleRank();
  }
  static v1::JobSpec RewardModelJob() {
    v1::JobSpec job;
    v1::RewardModelSpec* spec = job.mutable_reward_model();
    spec->set_model("model");
    spec->set_data("data");
    spec->set_held_out_fraction(0.25);
    spec->set_epochs(4);
    spec->set_batch_size(8);
    spec->set_centering(0.001);
    spec->set_micro_batch_tokens(8192);
    Complete(spec->mutable_optimizer(), 3e-3);
    return job;
  }
  absl::StatusOr<std::unique_ptr<Trainer>> Make(const v1::JobSpec& spec) {
    TrainerInputs inputs;
    inputs.spec = spec;
    inputs.local = {{"model", dir_.File("model")}, {"data", dir_.File("data.jsonl")}};
    auto trainer = Trainer::Create(inputs);
    if (trainer.ok()) (*trainer)->SetCollective(alone_.get());
    return trainer;
  }

  // The score is 1 when the first token is the wanted one.
  std::vector<v1::Sample> Rollouts(const model::Transformer& policy, int64_t step, int n, int32_t wanted) {
    return DrawSamples(policy, step, n, [wanted](int32_t first) {
      return first == wanted ? 1 : first < 140 ? 0.2 : 0;
    });
  }

  // Four prompts with four samples each, whose references are near the samples' log-probabilities and not on them.
  static v1::JobSpec GroupJob(v1::KlForm form) {
    v1::JobSpec job = PpoJob(4);
    v1::PpoSpec* spec = job.mutable_ppo();
    spec->set_samples_per_prompt(4);
    spec->set_minibatch_size(0);
    spec->set_epochs(1);
    spec->set_advantage(v1::GRPO);
    spec->set_whiten_advantages(false);
    spec->mutable_kl()->set_form(form);
    spec->mutable_kl()->set_coefficient(0.3);
    return job;
  }
  std::vector<v1::Sample> GroupRollouts(const model::Transformer& policy, int64_t step) {
    std::vector<v1::Sample> batch = Rollouts(policy, step, 16, 100);
    for (size_t i = 0; i < batch.size(); ++i) {
      for (int t = 0; t < 2; ++t) {
        float* const reference = batch[i].mutable_score()->mutable_reference_log_probs()->Mutable(t);
        *reference += 0.1F * static_cast<float>(static_cast<int>(i * 7 + static_cast<size_t>(t) * 3) % 5 - 2);
      }
    }
    return batch;
  }
  // Of the samples' response tokens, by the plain formula.
  static torch::Tensor PlainLogProbs(const model::Transformer& policy, const std::vector<v1::Sample>& samples) {
    std::vector<torch::Tensor> out;
    for (const v1::Sample& sample : samples) {
      std::vector<int32_t> ids(sample.prompt_tokens().begin(), sample.prompt_tokens().end());
      ids.insert(ids.end(), sample.response_tokens().begin(), sample.response_tokens().end());
      const torch::Tensor all =
          torch::log_softmax(policy.Logits(policy.Hidden(model::PackedBatch::FromSequences({ids}))), -1);
      for (int t = 0; t < sample.response_tokens_size(); ++t)
        out.push_back(all[sample.prompt_tokens_size() + t - 1][sample.response_tokens(t)]);
    }
    return torch::stack(out);
  }
  static torch::Tensor References(const std::vector<v1::Sample>& samples) {
    std::vector<float> out;
    for (const v1::Sample& sample : samples) {
      out.insert(out.end(), sample.score().reference_log_probs().begin(), sample.score().reference_log_probs().end());
    }
    return torch::tensor(out);
  }
  static double NormOfGradient(const torch::Tensor& loss, const model::Transformer& policy) {
    std::vector<torch::Tensor> parameters;
    for (const auto& [name, parameter] : policy.trained_parameters()) parameters.push_back(parameter);
    double square = 0;
    for (const torch::Tensor& gradient : torch::autograd::grad({loss}, parameters, {}, {}, false, true)) {
      if (gradient.defined()) square += gradient.square().sum().item<double>();
    }
    return std::sqrt(square);
  }

  ScratchDir dir_;
  std::unique_ptr<Collective> alone_;
};

}  // namespace rlhf::learner
