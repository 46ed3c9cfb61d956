#include "rollout_worker/engine.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include <c10/core/InferenceMode.h>

#include "absl/strings/str_cat.h"
#include "artifact/prompt.h"
#include "artifact/sample_id.h"
#include "common/log.h"
#include "common/status_util.h"
#include "model/device.h"
#include "model/guard.h"
#include "rollout_worker/engine_impl.h"
#include "rollout_worker/stop_texts.h"

namespace rlhf::rollout {
namespace {

int ContextTokens(const model::Transformer& model, const EngineOptions& options) {
  const int context = static_cast<int>(model.config().max_position_embeddings);
  return options.max_tokens > 0 ? std::min(options.max_tokens, context) : context;
}

int64_t Positions(const model::Transformer& model, const EngineOptions& options) {
  const int64_t most = static_cast<int64_t>(options.slots) * ContextTokens(model, options);
  int64_t bytes = options.kv_cache_bytes;
  if (bytes == 0) {
    const std::optional<int64_t> free = model::FreeBytes(model.device());
    if (!free) return most;
    bytes = *free / 2;
  }
  return std::min(most, bytes / model::KvCache::BytesPerPosition(model.config(), model.dtype()));
}

model::SamplingParams ToSamplingParams(const v1::SamplingParams& params) {
  model::SamplingParams out;
  out.temperature = params.has_temperature() ? params.temperature() : 1.0;
  out.top_p = params.has_top_p() ? params.top_p() : 1.0;
  out.top_k = params.top_k();
  return out;
}

}  // namespace

Engine::Engine(std::unique_ptr<model::Transformer> model, std::unique_ptr<artifact::Tokenizer> tokenizer,
               const v1::PolicyVersion& version, const EngineOptions& options)
    : model_(std::move(model)),
      tokenizer_(std::move(tokenizer)),
      version_(version),
      options_(options),
      max_tokens_(ContextTokens(*model_, options)),
      cache_(model::KvCache::Shared(model_->config(), options.slots + options.shared_prefixes,
                                    Positions(*model_, options), model_->dtype(), model_->device())),
      graphs_(options.cuda_graphs ? model::DecodeGraphs::Make(*model_, cache_) : nullptr),
      prefixes_(options.slots, options.shared_prefixes),
      slots_(options.slots) {}

Engine::~Engine() = default;

absl::Status Engine::Add(const v1::PromptLease& lease, int64_t* needs_cache_bytes) {
  if (needs_cache_bytes != nullptr) *needs_cache_bytes = 0;
  auto tokens = artifact::EncodePrompt(*tokenizer_, lease.prompt().text(), artifact::MessagesOf(lease.prompt()));
  if (!tokens.ok()) return Annotate(tokens.status(), absl::StrCat("prompt ", lease.prompt().id()));
  const int size = static_cast<int>(tokens->size());
  const int context = static_cast<int>(model_->config().max_position_embeddings);
  if (size < 1 || size >= context) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt ", lease.prompt().id(), " has ", size, " tokens; expected 1 to ", context - 1,
                     " (the context length less one); shorten the prompt or use a model with a longer context"));
  }
  const int room = max_tokens_ - size;
  if (room < 1) {
    return absl::ResourceExhaustedError(absl::StrCat("prompt ", lease.prompt().id(), " has ", size,
                                                     " tokens; a slot of this worker holds ", max_tokens_ - 1,
                                                     " and one of the response: raise --max-tokens"));
  }
  auto group = std::make_unique<Group>();
  group->lease = lease;
  group->prompt_tokens = *std::move(tokens);
  group->waiting.assign(lease.samples().begin(), lease.samples().end());
  group->sampling = ToSamplingParams(lease.sampling());
  const int wanted = lease.sampling().has_max_new_tokens() ? lease.sampling().max_new_tokens() : 64;
  // Only the model's context shortens an answer: by a worker's own bound, answers would be as long as who gave them.
  group->max_new_tokens = std::min(wanted, context - size);
  if (group->max_new_tokens > room) {
    return absl::ResourceExhaustedError(absl::StrCat("prompt ", lease.prompt().id(), " has ", size,
                                                     " tokens, and up to ", group->max_new_tokens,
                                                     " are to follow (max_new_tokens); a slot of this worker holds ",
                                                     max_tokens_, ": raise --max-tokens, or lower max_new_tokens"));
  }
  group->room = static_cast<int64_t>(group->prompt_tokens.size()) + std::max(group->max_new_tokens, 1) - 1;
  if (group->room > cache_.positions()) {
    const int64_t position_bytes = model::KvCache::BytesPerPosition(model_->config(), model_->dtype());
    if (needs_cache_bytes != nullptr) *needs_cache_bytes = group->room * position_bytes;
    return absl::ResourceExhaustedError(absl::StrCat(
        "prompt ", lease.prompt().id(), " needs keys and values of ", group->room, " tokens (",
        group->prompt_tokens.size(), " of the prompt, and max_new_tokens less one); this worker's cache has room for ",
        cache_.positions(), " (", position_bytes, " bytes each): raise --kv-cache-bytes, or lower max_new_tokens"));
  }
  longest_room_ = std::max(longest_room_, group->room);
  waiting_samples_ += static_cast<int>(group->waiting.size());
  waiting_.push_back(std::move(group));
  return absl::OkStatus();
}

void Engine::Drop(const v1::SampleId& id, int attempt) {
  for (auto& slot : slots_) {
    if (slot && slot->lease->job_id() == id.job_id() && slot->lease->step() == id.step() &&
        slot->lease->ordinal() == id.ordinal() && slot->sample.index() == id.index() &&
        slot->sample.attempt() <= attempt) {
      Vacate(slot->slot);
    }
  }
  for (auto& group : waiting_) {
    if (group->lease.job_id() != id.job_id() || group->lease.step() != id.step() ||
        group->lease.ordinal() != id.ordinal())
      continue;
    waiting_samples_ -= static_cast<int>(std::erase_if(group->waiting, [&](const v1::SampleLease& sample) {
      return sample.index() == id.index() && sample.attempt() <= attempt;
    }));
  }
  std::erase_if(waiting_, [this](const auto& group) {
    if (!group->waiting.empty()) return false;
    for (const int slot : group->slots) cache_.Release(slot);
    return true;
  });
}

void Engine::SetVersion(const v1::PolicyVersion& version) {
  version_ = version;
  ++weights_;
  while (const std::optional<int> kept = prefixes_.EvictOldest()) cache_.Release(*kept);
  for (const auto& group : waiting_) {
    if (!group->slots.empty()) cache_.Reset(group->slots.front());
  }
}

int64_t Engine::cache_bytes() const {
  return cache_.positions() * model::KvCache::BytesPerPosition(model_->config(), model_->dtype());
}

double Engine::kv_cache_usage() const {
  int64_t reserved = 0;
  for (int slot = 0; slot < options_.slots; ++slot) reserved += cache_.room(slot);
  return static_cast<double>(reserved) / static_cast<double>(std::max<int64_t>(cache_.positions(), 1));
}

int Engine::capacity() const {
  const int64_t room = longest_room_ > 0 ? longest_room_ : max_tokens_;
  return static_cast<int>(std::clamp<int64_t>(cache_.positions() / room, 1, options_.slots));
}

std::vector<v1::LeaseProgress> Engine::Progress() const {
  std::vector<v1::LeaseProgress> out;
  const auto add = [&out](const v1::PromptLease& lease, const v1::SampleLease& sample, size_t done) {
    v1::LeaseProgress& progress = out.emplace_back();
    *progress.mutable_id() = artifact::SampleIdOf(lease, sample.index());
    progress.set_attempt(sample.attempt());
    progress.set_tokens_done(static_cast<int32_t>(done));
  };
  for (const auto& slot : slots_) {
    if (slot) add(*slot->lease, slot->sample, slot->tokens.size());
  }
  for (const auto& group : waiting_) {
    for (const auto& sample : group->waiting) add(group->lease, sample, 0);
  }
  return out;
}

bool Engine::Append(Running& sequence, const model::SampledToken& token) {
  sequence.tokens.push_back(token.id);
  sequence.log_probs.push_back(token.log_prob);
  sequence.log_kept_mass.push_back(token.log_kept_mass);
  sequence.version_high = version_;
  ++counters_.generated_tokens;
  if (tokenizer_->EndsText(token.id)) {
    sequence.finish = v1::END_OF_TEXT;
  } else if (sequence.stops.Found(*tokenizer_, sequence.tokens)) {
    sequence.finish = v1::STOP_TEXT;
  }
  if (sequence.finish == v1::FINISH_REASON_UNSPECIFIED &&
      static_cast<int>(sequence.tokens.size()) >= sequence.max_new_tokens) {
    sequence.finish = v1::MAX_TOKENS;
  }
  return sequence.finish != v1::FINISH_REASON_UNSPECIFIED;
}

absl::StatusOr<v1::Sample> Engine::Finish(Running& sequence) {
  v1::Sample out;
  *out.mutable_id() = artifact::SampleIdOf(*sequence.lease, sequence.sample.index());
  out.set_attempt(sequence.sample.attempt());
  *out.mutable_prompt() = sequence.lease->prompt();
  out.mutable_prompt_tokens()->Add(sequence.prompt_tokens.begin(), sequence.prompt_tokens.end());
  out.mutable_response_tokens()->Add(sequence.tokens.begin(), sequence.tokens.end());
  out.mutable_behaviour_log_probs()->Add(sequence.log_probs.begin(), sequence.log_probs.end());
  if (sequence.sampling.top_p < 1.0 || sequence.sampling.top_k > 0) {
    out.mutable_log_kept_mass()->Add(sequence.log_kept_mass.begin(), sequence.log_kept_mass.end());
  }
  RLHF_ASSIGN_OR_RETURN(*out.mutable_response_text(), ResponseText(*tokenizer_, sequence.tokens));
  out.set_finish_reason(sequence.finish);
  *out.mutable_version_low() = sequence.version_low;
  *out.mutable_version_high() = sequence.version_high;
  out.set_worker_id(options_.worker_id);
  return out;
}

absl::StatusOr<std::vector<v1::Sample>> Engine::Step() {
  std::vector<v1::Sample> finished;
  RLHF_RETURN_IF_ERROR(model::Guard("generating", [&] { return DecodeStep(&finished); }));
  return finished;
}

torch::Tensor Engine::Compute(const Pass& pass) {
  if (graphs_ != nullptr && pass.prompts.empty()) {
    std::vector<int32_t> tokens;
    for (const std::vector<int32_t>& input : pass.inputs) tokens.push_back(input.front());
    const bool worked = graphs_->failure().empty();
    const torch::Tensor logits = graphs_->Step(tokens, pass.slots);
    if (worked && !graphs_->failure().empty())
      spdlog::warn("steps are not recorded as CUDA graphs any more: {}", graphs_->failure());
    return logits;
  }
  model::PackedBatch batch = model::PackedBatch::FromSequences(pass.inputs, model_->device());
  std::vector<int64_t> positions;
  for (size_t i = 0; i < pass.slots.size(); ++i) {
    for (size_t t = 0; t < pass.inputs[i].size(); ++t)
      positions.push_back(cache_.length(pass.slots[i]) + static_cast<int64_t>(t));
  }
  batch.position_ids = model::ToDevice(positions, model_->device());
  return model_->Logits(model_->Extend(batch, pass.slots, cache_));
}

Engine::Pass Engine::PassOfRunning() const {
  Pass pass;
  for (const auto& sequence : slots_) {
    if (!sequence) continue;
    pass.inputs.push_back({sequence->tokens.back()});
    pass.slots.push_back(sequence->slot);
    pass.running.push_back(sequence.get());
  }
  return pass;
}

// Of the prompts that the pass computed to their ends; its other rows are of running sequences and of prompts' midst.
void Engine::KeepPromptLogits(const Pass& pass, const torch::Tensor& logits) {
  for (size_t i = 0; i < pass.prompts.size(); ++i) {
    Group& group = *pass.prompts[i];
    if (cache_.length(group.slots.front()) == static_cast<int64_t>(group.prompt_tokens.size()))
      group.prompt_logits = logits[static_cast<int64_t>(pass.running.size() + i)].clone();
  }
}

// The next token of every running sequence, then the first tokens of samples that start now.
Engine::Draw Engine::StartDraw(const Pass& pass, const torch::Tensor& logits) {
  Draw draw{pass.running, {}};
  std::vector<torch::Tensor> first_logits;
  StartAdmitted(&draw.sequences, &first_logits);
  if (!pass.running.empty()) draw.logits = logits.narrow(0, 0, static_cast<int64_t>(pass.running.size()));
  if (first_logits.empty()) return draw;
  const torch::Tensor first = torch::stack(first_logits);
  draw.logits = draw.logits.defined() ? torch::cat({draw.logits, first}) : first;
  return draw;
}

std::vector<model::SampledToken> Engine::Tokens(const Draw& draw) {
  std::vector<model::SamplingParams> params;
  std::vector<model::NoiseKey> keys;
  std::vector<uint32_t> positions;
  for (const Running* sequence : draw.sequences) {
    params.push_back(sequence->sampling);
    keys.push_back(sequence->noise);
    positions.push_back(static_cast<uint32_t>(sequence->tokens.size()));
  }
  std::vector<model::SampledToken> tokens = model::Sample(draw.logits, params, keys, positions);
  for (const model::SampledToken& token : tokens) {
    TORCH_CHECK(token.id >= 0 && std::isfinite(token.log_prob),
                "the model's logits are not finite: are its weights damaged, or did its training diverge?");
  }
  return tokens;
}

// Hands an ended sample over, or back where its tokens are no text, and frees its slot.
void Engine::End(Running& sequence, std::vector<v1::Sample>* finished) {
  if (absl::StatusOr<v1::Sample> sample = Finish(sequence); sample.ok()) {
    finished->push_back(*std::move(sample));
  } else {
    v1::ReturnedLease& failed = failed_.emplace_back();
    *failed.mutable_id() = artifact::SampleIdOf(*sequence.lease, sequence.sample.index());
    failed.set_attempt(sequence.sample.attempt());
    failed.set_error(absl::StrCat("the response is no text: ", sample.status().message()));
  }
  Retire(sequence.slot);
}

absl::Status Engine::DecodeStep(std::vector<v1::Sample>* finished) {
  const c10::InferenceMode inference;
  Pass pass = PassOfRunning();
  Admit(&pass);
  if (pass.slots.empty()) return absl::OkStatus();
  const torch::Tensor logits = Compute(pass);
  KeepPromptLogits(pass, logits);
  const Draw draw = StartDraw(pass, logits);
  if (draw.sequences.empty()) return absl::OkStatus();
  const std::vector<model::SampledToken> tokens = Tokens(draw);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (Append(*draw.sequences[i], tokens[i])) End(*draw.sequences[i], finished);
  }
  return absl::OkStatus();
}

}  // namespace rlhf::rollout
