// How much memory a model takes in each role. Formulas are stated in docs/deploy.md, "Sizing"; a learner's is held
// against measured peaks of real ranks by tests/learner/memory_test.cc. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "artifact/model_config.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::cli {

struct PlanInput {
  artifact::ModelConfig policy;
  bool critic = true;                   // PPO with GAE has one of the policy's size; RLOO, GRPO and SFT have none
  bool publishes = true;                // PPO: rank 0 keeps versions of the policy for rollout workers; SFT does not
  bool bfloat16 = false;                // compute; master weights and moments stay float32
  bool gradient_checkpointing = false;  // layers keep their inputs and are computed again in backward, one at a time
  int64_t ranks = 1;                    // learners that train together; the fewest the job may go on with
  // As in the job: sums of gradients, masters, moments and their snapshot are divided among the ranks.
  bool shard_optimizer_state = false;
  bool shard_parameters = false;  // as in the job: of layers' weights a share in steps, of a critic's always
  int64_t micro_batch_tokens = 8192;
  int64_t slots = 64;         // a rollout worker's sequences
  int64_t tokens_a_slot = 0;  // prompt and response; 0: the model's context
};

struct PlanLine {
  std::string role, what;
  uint64_t bytes;
  bool host = false;  // of a learner on a GPU: in the host's memory
};

// Line by line; the roles are "learner", "rollout worker" and "reward server".
std::vector<PlanLine> MemoryPlan(const PlanInput& input);
uint64_t TotalOf(const std::vector<PlanLine>& plan, const std::string& role);
// Of a learner's total what lies on its GPU.
uint64_t LearnerOnGpu(const std::vector<PlanLine>& plan);

struct MemoryEstimate {
  std::string where;  // "ppo", or "stage ppo" in a pipeline
  uint64_t learner, rollout_worker, reward_server;
};
// Of what a job trains, for each "file:" model that can be read; slots are a rollout worker's default.
std::vector<MemoryEstimate> EstimateMemory(const v1::JobSpec& spec, const std::string& base_dir);

}  // namespace rlhf::cli
