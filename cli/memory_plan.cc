#include "cli/memory_plan.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/kept_logits.h"

namespace rlhf::cli {
namespace {

constexpr uint64_t kFloat = 4, kBfloat = 2;

uint64_t U(int64_t value) {
  return static_cast<uint64_t>(value);
}

}  // namespace

std::vector<PlanLine> MemoryPlan(const PlanInput& input) {
  const artifact::ModelConfig& c = input.policy;
  const uint64_t parameters = U(artifact::NumParameters(c)), compute = input.bfloat16 ? kBfloat : kFloat;
  const uint64_t trained = parameters * (input.critic ? 2 : 1);
  const bool shard = input.shard_optimizer_state && input.ranks > 1;
  const uint64_t shares = shard ? U(input.ranks) : 1, owned = (trained + shares - 1) / shares;
  const uint64_t tokens = U(input.micro_batch_tokens), hidden = U(c.hidden_size), inner = U(c.intermediate_size);
  // What a layer keeps for the backward pass, a token: its input, the norms' outputs, q, k, v, attention's output, and
  // the MLP's two or three inner values. Scores are recomputed.
  const uint64_t heads = U(c.num_heads * c.head_dim), attention = heads * 2 + U(c.num_kv_heads * c.head_dim) * 2;
  const uint64_t layer = 4 * hidden + attention + (c.gated_mlp ? 3 : 2) * inner;
  const uint64_t kept = input.gradient_checkpointing ? U(c.num_layers) * hidden + layer : U(c.num_layers) * layer;
  const uint64_t slot_tokens = U(input.tokens_a_slot > 0 ? input.tokens_a_slot : c.max_position_embeddings);
  const uint64_t kv = 2 * U(c.num_layers * c.num_kv_heads * c.head_dim) * compute * U(input.slots) * slot_tokens;
  const uint64_t embedding = U(c.vocab_size) * hidden;
  // Backward's own, of one layer at a time: the gradients of its values and of its weights. Before that, of the head:
  // the logits that are kept, and the gradient of its weight in float32.
  const uint64_t layer_weights = hidden * attention + (c.gated_mlp ? 3 : 2) * hidden * inner;
  const uint64_t of_layer = (tokens * layer + layer_weights) * compute;
  const uint64_t logits =
      std::max(2 * U(kLogitsRows) * U(c.vocab_size), std::min(tokens * U(c.vocab_size), U(kKeptLogits)));
  const uint64_t of_head = (logits + embedding) * kFloat;
  const uint64_t buckets = shard ? (embedding + 2 * hidden * std::max(inner, heads)) * kFloat : 0;
  const bool divide = shard && input.shard_parameters;
  const uint64_t models = input.critic ? 2 : 1, layers = std::min(parameters, U(c.num_layers) * layer_weights);
  std::vector<PlanLine> plan;
  const auto learner = [&plan](const std::string& what, uint64_t bytes, bool host = false) {
    plan.push_back({"learner", what, bytes, host});
  };
  const uint64_t held = divide ? trained - models * layers : trained;  // what is whole on every rank
  learner(input.bfloat16 ? "weights, bfloat16" : "weights, float32", held * compute);
  if (divide) {
    if (!input.bfloat16) learner("a share of the layers' weights, float32", models * layers / shares * kFloat);
    // One of its matrices a second time while they come.
    const uint64_t gathered = (layer_weights + hidden * std::max(inner, heads)) * compute;
    learner("a layer's weights, while it is computed", gathered);
    // Between steps the model that the job makes is whole, and of a step's own memory there is nothing.
    const uint64_t of_step = tokens * kept * compute + std::max(of_layer, of_head) + buckets + gathered;
    if (layers * compute > of_step)
      learner("the layers whole, between steps, beyond a step's", layers * compute - of_step);
  }
  if (input.bfloat16) learner("master weights, float32", owned * kFloat);
  learner("sums of gradients, float32", owned * kFloat);
  learner("AdamW's two moments, float32", 2 * owned * kFloat);
  learner("snapshot from before the step", 3 * owned * kFloat, /*host=*/shard);
  learner("activations of a micro-batch", tokens * kept * compute);
  learner("backward of the head, then of a layer", std::max(of_layer, of_head));
  // The embedding's, or the head's, is the largest; two more may be under way (learner/gradient_buckets.h).
  if (shard) learner("buckets on their way", buckets);
  // Of rank 0 (learner/service/weight_publisher.h). What changed since the version before takes at most half of one; in
  // float32 nearly everything changes, and none is made.
  if (input.publishes) {
    learner("weights being published, two versions", 2 * parameters * compute, /*host=*/true);
    if (input.bfloat16) learner("what changed before each, at most", 2 * parameters * compute / 2, /*host=*/true);
  }
  plan.push_back({"rollout worker", "weights", parameters * compute});
  plan.push_back({"rollout worker", "the next version, while it arrives", parameters * kFloat});
  plan.push_back({"rollout worker", "key-value cache", kv});
  plan.push_back({"reward server", "reward model", parameters * compute});
  plan.push_back({"reward server", "reference policy", parameters * compute});
  plan.push_back({"reward server", "activations of a batch", tokens * layer * compute});
  return plan;
}

uint64_t TotalOf(const std::vector<PlanLine>& plan, const std::string& role) {
  uint64_t sum = 0;
  for (const PlanLine& line : plan) sum += line.role == role ? line.bytes : 0;
  return sum;
}

uint64_t LearnerOnGpu(const std::vector<PlanLine>& plan) {
  uint64_t sum = 0;
  for (const PlanLine& line : plan) sum += line.role == "learner" && !line.host ? line.bytes : 0;
  return sum;
}

namespace {

// JobSpec and StageSpec have the same kinds.
template <typename Spec>
void Estimate(const Spec& spec, const v1::LearnerGroupSpec& learners, const std::string& where,
              const std::string& base_dir, std::vector<MemoryEstimate>* estimates) {
  PlanInput input;
  input.ranks = std::max(1, learners.has_min_ranks() ? learners.min_ranks() : learners.ranks());
  input.shard_optimizer_state = learners.shard_optimizer_state();
  input.shard_parameters = learners.shard_parameters();
  std::string reference;
  if (spec.has_ppo()) {
    const v1::PpoSpec& ppo = spec.ppo();
    reference = ppo.policy();
    input.critic = ppo.advantage() == v1::GAE || ppo.advantage() == v1::ADVANTAGE_ESTIMATOR_UNSPECIFIED;
    input.bfloat16 = ppo.precision() == v1::BFLOAT16;
    input.gradient_checkpointing = ppo.gradient_checkpointing();
    if (ppo.has_micro_batch_tokens()) input.micro_batch_tokens = ppo.micro_batch_tokens();
  } else if (spec.has_sft() || spec.has_reward_model()) {
    reference = spec.has_sft() ? spec.sft().model() : spec.reward_model().model();
    input.critic = input.publishes = false;
    input.gradient_checkpointing = spec.sft().gradient_checkpointing() || spec.reward_model().gradient_checkpointing();
  }
  absl::string_view path = reference;
  if (!absl::ConsumePrefix(&path, "file:")) return;
  const auto config = artifact::LoadModelConfig((std::filesystem::path(base_dir) / std::string(path)).string());
  if (!config.ok()) return;
  input.policy = *config;
  const std::vector<PlanLine> plan = MemoryPlan(input);
  estimates->push_back(
      {where, TotalOf(plan, "learner"), TotalOf(plan, "rollout worker"), TotalOf(plan, "reward server")});
}

}  // namespace

std::vector<MemoryEstimate> EstimateMemory(const v1::JobSpec& spec, const std::string& base_dir) {
  std::vector<MemoryEstimate> estimates;
  Estimate(spec, spec.learners(), spec.name(), base_dir, &estimates);
  for (const v1::StageSpec& stage : spec.pipeline().stages()) {
    Estimate(stage, stage.has_learners() ? stage.learners() : spec.learners(), absl::StrCat("stage ", stage.name()),
             base_dir, &estimates);
  }
  return estimates;
}

}  // namespace rlhf::cli
