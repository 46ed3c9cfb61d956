// Complete specifications for tests of trainers, small and quick.
#pragma once

#include <string>

#include "rlhf/v1/job.pb.h"

namespace rlhf::learner {

inline void Complete(v1::OptimizerSpec* spec, double rate) {
  spec->set_learning_rate(rate);
  spec->set_schedule(v1::CONSTANT);
  spec->set_beta1(0.9);
  spec->set_beta2(0.95);
  spec->set_epsilon(1e-8);
  spec->set_max_grad_norm(1.0);
}

inline v1::JobSpec SftJob(int steps, int micro_batch_tokens = 8192) {
  v1::JobSpec job;
  v1::SftSpec* spec = job.mutable_sft();
  spec->set_model("model");
  spec->set_data("data");
  spec->set_steps(steps);
  spec->set_batch_size(8);
  spec->set_prompt_loss_weight(0.3);
  spec->set_micro_batch_tokens(micro_batch_tokens);
  Complete(spec->mutable_optimizer(), 1e-2);
  return job;
}

inline v1::JobSpec PpoJob(int prompts_per_step, int micro_batch_tokens = 8192) {
  v1::JobSpec job;
  v1::PpoSpec* spec = job.mutable_ppo();
  spec->set_policy("model");
  spec->set_critic("model");
  spec->set_steps(100);
  spec->set_prompts_per_step(prompts_per_step);
  spec->set_samples_per_prompt(1);
  spec->mutable_sampling()->set_temperature(1.0);
  spec->set_epochs(2);
  spec->set_minibatch_size(prompts_per_step / 2);
  spec->set_micro_batch_tokens(micro_batch_tokens);
  spec->set_advantage(v1::GAE);
  spec->set_gamma(1);
  spec->set_lambda(0.95);
  spec->set_whiten_advantages(true);
  spec->set_clip_range(0.2);
  spec->set_clip_range_high(0.2);
  spec->set_value_clip_range(0.2);
  spec->set_value_coefficient(0.1);
  spec->set_max_importance_weight(2);
  spec->mutable_kl()->set_coefficient(0.02);
  spec->set_max_first_minibatch_ratio_error(1e-4);
  Complete(spec->mutable_policy_optimizer(), 3e-3);
  Complete(spec->mutable_critic_optimizer(), 3e-3);
  return job;
}

}  // namespace rlhf::learner
