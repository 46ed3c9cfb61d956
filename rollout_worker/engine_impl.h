// Inside of Engine. Shared by engine.cc (what is asked of it, and decoding) and engine_admission.cc (slots and memory).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/sampler.h"
#include "rollout_worker/engine.h"
#include "rollout_worker/stop_texts.h"

namespace rlhf::rollout {

// A prompt, encoded once, with the samples of it that still wait for a slot.
struct Engine::Group {
  v1::PromptLease lease;
  std::vector<int32_t> prompt_tokens;
  std::vector<v1::SampleLease> waiting;
  model::SamplingParams sampling;
  int max_new_tokens = 0;
  int64_t room = 0;  // positions of the cache that a sample takes at its longest; its last token is never put there
  // The slots that its next samples get, with room; the prompt is computed in the first. Empty: not admitted yet.
  std::vector<int> slots;
  torch::Tensor prompt_logits;  // at the prompt's last token
};

// What one forward pass extends: running sequences by their newest token, then prompts by their next part.
struct Engine::Pass {
  std::vector<std::vector<int32_t>> inputs;
  std::vector<int> slots;
  std::vector<Running*> running;
  std::vector<Group*> prompts;
};

// Whose next token is drawn, from which logits, [sequences, vocab].
struct Engine::Draw {
  std::vector<Running*> sequences;
  torch::Tensor logits;
};

struct Engine::Running {
  std::shared_ptr<const v1::PromptLease> lease;
  std::vector<int32_t> prompt_tokens;
  v1::SampleLease sample;
  model::SamplingParams sampling;
  model::NoiseKey noise;
  int max_new_tokens = 0;
  int slot = -1;
  int64_t weights = 0;  // by which its prompt was computed
  std::vector<int32_t> tokens;
  std::vector<float> log_probs, log_kept_mass;
  v1::PolicyVersion version_low, version_high;
  v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED;
  StopTexts stops{{}};
};

}  // namespace rlhf::rollout
