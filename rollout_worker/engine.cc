#include "rollout_worker/engine.h"

#include <algorithm>
#include <utility>

#include <c10/core/InferenceMode.h>

#include "absl/strings/str_cat.h"
#include "artifact/prompt.h"
#include "common/status_util.h"
#include "model/guard.h"

namespace rlhf::rollout {
namespace {

int ContextTokens(const model::Transformer& model, const EngineOptions& options) {
  const int context = static_cast<int>(model.config().max_position_embeddings);
  return options.max_tokens > 0 ? std::min(options.max_tokens, context) : context;
}

model::SamplingParams ToSamplingParams(const v1::SamplingParams& params) {
  model::SamplingParams out;
  out.temperature = params.has_temperature() ? params.temperature() : 1.0;
  out.top_p = params.has_top_p() ? params.top_p() : 1.0;
  out.top_k = params.top_k();
  return out;
}

}  // namespace

// A prompt, encoded once, with the samples of it that still wait for a slot.
struct Engine::Group {
  v1::PromptLease lease;
  std::vector<int32_t> prompt_tokens;
  std::vector<v1::SampleLease> waiting;
  model::SamplingParams sampling;
  int max_new_tokens = 0;
  // Logits at the prompt's last token, and a slot whose cache begins with the prompt; later samples copy both.
  torch::Tensor prompt_logits;
  int prefix_slot = -1;
};

struct Engine::Running {
  std::shared_ptr<const v1::PromptLease> lease;
  std::vector<int32_t> prompt_tokens;
  v1::SampleLease sample;
  model::SamplingParams sampling;
  model::NoiseKey noise;
  int max_new_tokens = 0;
  int slot = -1;
  std::vector<int32_t> tokens;
  std::vector<float> log_probs, log_kept_mass;
  v1::PolicyVersion version_low, version_high;
  v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED;
};

Engine::Engine(std::unique_ptr<model::Transformer> model, std::unique_ptr<artifact::Tokenizer> tokenizer,
               const v1::PolicyVersion& version, const EngineOptions& options)
    : model_(std::move(model)),
      tokenizer_(std::move(tokenizer)),
      version_(version),
      options_(options),
      cache_(model_->config(), options.slots, ContextTokens(*model_, options), model_->dtype(), model_->device()),
      slots_(options.slots) {}

Engine::~Engine() = default;

absl::Status Engine::Add(const v1::PromptLease& lease) {
  auto tokens = artifact::EncodePrompt(*tokenizer_, lease.prompt().text(), artifact::MessagesOf(lease.prompt()));
  if (!tokens.ok()) return Annotate(tokens.status(), absl::StrCat("prompt ", lease.prompt().id()));
  const int room = cache_.max_tokens() - static_cast<int>(tokens->size());
  if (tokens->empty() || room < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt ", lease.prompt().id(), " has ", tokens->size(), " tokens; expected 1 to ", cache_.max_tokens() - 1,
        " (the context length less one); shorten the prompt or use a model with a longer context"));
  }
  auto group = std::make_unique<Group>();
  group->lease = lease;
  group->prompt_tokens = *std::move(tokens);
  group->waiting.assign(lease.samples().begin(), lease.samples().end());
  group->sampling = ToSamplingParams(lease.sampling());
  const int wanted = lease.sampling().has_max_new_tokens() ? lease.sampling().max_new_tokens() : 64;
  group->max_new_tokens = std::min(wanted, room);
  waiting_samples_ += static_cast<int>(group->waiting.size());
  waiting_.push_back(std::move(group));
  return absl::OkStatus();
}

void Engine::Drop(const v1::SampleId& id, int attempt) {
  for (auto& slot : slots_) {
    if (slot && slot->lease->job_id() == id.job_id() && slot->lease->step() == id.step() &&
        slot->lease->ordinal() == id.ordinal() && slot->sample.index() == id.index() &&
        slot->sample.attempt() <= attempt) {
      slot.reset();
      --running_;
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
  std::erase_if(waiting_, [](const auto& group) { return group->waiting.empty(); });
}

double Engine::kv_cache_usage() const {
  int64_t used = 0;
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot]) used += cache_.length(static_cast<int>(slot));
  }
  return static_cast<double>(used) / (static_cast<double>(slots_.size()) * cache_.max_tokens());
}

std::vector<v1::LeaseProgress> Engine::Progress() const {
  std::vector<v1::LeaseProgress> out;
  const auto add = [&out](const v1::PromptLease& lease, const v1::SampleLease& sample, size_t done) {
    v1::LeaseProgress& progress = out.emplace_back();
    progress.mutable_id()->set_job_id(lease.job_id());
    progress.mutable_id()->set_step(lease.step());
    progress.mutable_id()->set_ordinal(lease.ordinal());
    progress.mutable_id()->set_index(sample.index());
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

void Engine::Start(Group& group, int sample, int slot) {
  auto sequence = std::make_unique<Running>();
  sequence->lease = std::make_shared<const v1::PromptLease>(group.lease);
  sequence->prompt_tokens = group.prompt_tokens;
  sequence->sample = group.waiting[sample];
  sequence->sampling = group.sampling;
  sequence->max_new_tokens = group.max_new_tokens;
  sequence->slot = slot;
  sequence->version_low = sequence->version_high = version_;
  sequence->noise.seed = group.lease.seed();
  sequence->noise.stream = group.lease.stream();
  sequence->noise.step = static_cast<uint32_t>(group.lease.step());
  sequence->noise.ordinal = static_cast<uint32_t>(group.lease.ordinal());
  sequence->noise.index = static_cast<uint32_t>(sequence->sample.index());
  slots_[slot] = std::move(sequence);
  ++running_;
}

bool Engine::Append(Running& sequence, const model::SampledToken& token) {
  sequence.tokens.push_back(token.id);
  sequence.log_probs.push_back(token.log_prob);
  sequence.log_kept_mass.push_back(token.log_kept_mass);
  sequence.version_high = version_;
  ++counters_.generated_tokens;
  if (tokenizer_->eos_id() && token.id == *tokenizer_->eos_id()) {
    sequence.finish = v1::END_OF_TEXT;
  } else if (!sequence.lease->sampling().stop().empty()) {
    const auto text = Text(sequence.tokens);
    for (const std::string& stop : sequence.lease->sampling().stop()) {
      if (text.ok() && text->find(stop) != std::string::npos) sequence.finish = v1::STOP_TEXT;
    }
  }
  if (sequence.finish == v1::FINISH_REASON_UNSPECIFIED &&
      static_cast<int>(sequence.tokens.size()) >= sequence.max_new_tokens) {
    sequence.finish = v1::MAX_TOKENS;
  }
  return sequence.finish != v1::FINISH_REASON_UNSPECIFIED;
}

absl::StatusOr<std::string> Engine::Text(std::vector<int32_t> tokens) const {
  // A padded vocabulary has ids that no tokenizer knows; they are tokens like others, without a text.
  std::erase_if(tokens, [known = tokenizer_->vocab_size()](int32_t id) { return id >= known; });
  return tokenizer_->Decode(tokens);
}

absl::StatusOr<v1::Sample> Engine::Finish(Running& sequence) {
  v1::Sample out;
  out.mutable_id()->set_job_id(sequence.lease->job_id());
  out.mutable_id()->set_step(sequence.lease->step());
  out.mutable_id()->set_ordinal(sequence.lease->ordinal());
  out.mutable_id()->set_index(sequence.sample.index());
  out.set_attempt(sequence.sample.attempt());
  *out.mutable_prompt() = sequence.lease->prompt();
  out.mutable_prompt_tokens()->Add(sequence.prompt_tokens.begin(), sequence.prompt_tokens.end());
  out.mutable_response_tokens()->Add(sequence.tokens.begin(), sequence.tokens.end());
  out.mutable_behaviour_log_probs()->Add(sequence.log_probs.begin(), sequence.log_probs.end());
  if (sequence.sampling.top_p < 1.0 || sequence.sampling.top_k > 0) {
    out.mutable_log_kept_mass()->Add(sequence.log_kept_mass.begin(), sequence.log_kept_mass.end());
  }
  RLHF_ASSIGN_OR_RETURN(*out.mutable_response_text(), Text(sequence.tokens));
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

absl::Status Engine::DecodeStep(std::vector<v1::Sample>* finished) {
  const c10::InferenceMode inference;
  // Running sequences extend by their newest token; prompts that get a slot now are prefilled in the same pass.
  std::vector<std::vector<int32_t>> inputs;
  std::vector<int> slots;
  for (auto& sequence : slots_) {
    if (!sequence) continue;
    inputs.push_back({sequence->tokens.back()});
    slots.push_back(sequence->slot);
  }
  const size_t decoding = slots.size();
  struct Admission {
    Group* group;
    size_t row;
  };
  std::vector<Admission> prefills;
  std::vector<int> free;
  for (int slot = options_.slots - 1; slot >= 0; --slot) {
    if (!slots_[slot]) free.push_back(slot);
  }
  size_t room = free.size();
  for (auto& group : waiting_) {
    if (room == 0) break;
    room -= std::min(room, group->waiting.size());
    if (group->prompt_logits.defined()) continue;
    const int slot = free.back();
    free.pop_back();
    cache_.Reset(slot);
    group->prefix_slot = slot;
    prefills.push_back({group.get(), slots.size()});
    inputs.push_back(group->prompt_tokens);
    slots.push_back(slot);
    counters_.prompt_tokens += static_cast<int64_t>(group->prompt_tokens.size());
  }
  if (slots.empty() && waiting_.empty()) return absl::OkStatus();

  torch::Tensor logits;
  if (!slots.empty()) {
    model::PackedBatch batch = model::PackedBatch::FromSequences(inputs, model_->device());
    std::vector<int64_t> positions;
    for (size_t i = 0; i < slots.size(); ++i) {
      for (size_t t = 0; t < inputs[i].size(); ++t)
        positions.push_back(cache_.length(slots[i]) + static_cast<int64_t>(t));
    }
    batch.position_ids = torch::tensor(positions, torch::kInt64).to(model_->device());
    logits = model_->Logits(model_->Extend(batch, slots, cache_));
  }
  for (const Admission& prefill : prefills) {
    prefill.group->prompt_logits = logits[static_cast<int64_t>(prefill.row)].clone();
  }

  // The next token of every running sequence, then the first tokens of samples that start now.
  std::vector<Running*> sequences;
  for (size_t i = 0; i < decoding; ++i) sequences.push_back(slots_[slots[i]].get());
  std::vector<torch::Tensor> first_logits;
  while (!waiting_.empty()) {
    Group& group = *waiting_.front();
    if (!group.prompt_logits.defined()) break;
    const auto length = static_cast<int64_t>(group.prompt_tokens.size());
    size_t started = 0;
    for (; started < group.waiting.size(); ++started) {
      int slot = group.prefix_slot;
      if (started > 0 || slots_[slot]) {
        if (free.empty()) break;
        slot = free.back();
        free.pop_back();
        cache_.Reset(slot);
        cache_.CopyPrefix(group.prefix_slot, slot, length);
        cache_.SetLength(slot, length);
      }
      Start(group, static_cast<int>(started), slot);
      sequences.push_back(slots_[slot].get());
      first_logits.push_back(group.prompt_logits);
    }
    waiting_samples_ -= static_cast<int>(started);
    group.waiting.erase(group.waiting.begin(), group.waiting.begin() + static_cast<int64_t>(started));
    if (!group.waiting.empty()) {
      // The rest of its samples come when slots are free again; its prefix may be gone by then, so it is prefilled
      // anew.
      group.prompt_logits = torch::Tensor();
      group.prefix_slot = -1;
      break;
    }
    waiting_.pop_front();
  }
  if (sequences.empty()) return absl::OkStatus();

  torch::Tensor all = decoding > 0 ? logits.narrow(0, 0, static_cast<int64_t>(decoding)) : torch::Tensor();
  if (!first_logits.empty()) {
    const torch::Tensor first = torch::stack(first_logits);
    all = all.defined() ? torch::cat({all, first}) : first;
  }
  std::vector<model::SamplingParams> params;
  std::vector<model::NoiseKey> keys;
  std::vector<uint32_t> positions;
  for (const Running* sequence : sequences) {
    params.push_back(sequence->sampling);
    keys.push_back(sequence->noise);
    positions.push_back(static_cast<uint32_t>(sequence->tokens.size()));
  }
  const std::vector<model::SampledToken> tokens = model::Sample(all, params, keys, positions);
  for (size_t i = 0; i < sequences.size(); ++i) {
    Running& sequence = *sequences[i];
    if (!Append(sequence, tokens[i])) continue;
    if (absl::StatusOr<v1::Sample> sample = Finish(sequence); sample.ok()) {
      finished->push_back(*std::move(sample));
    } else {
      v1::ReturnedLease& failed = failed_.emplace_back();
      failed.mutable_id()->set_job_id(sequence.lease->job_id());
      failed.mutable_id()->set_step(sequence.lease->step());
      failed.mutable_id()->set_ordinal(sequence.lease->ordinal());
      failed.mutable_id()->set_index(sequence.sample.index());
      failed.set_attempt(sequence.sample.attempt());
      failed.set_error(absl::StrCat("the response is no text: ", sample.status().message()));
    }
    slots_[sequence.slot].reset();
    --running_;
  }
  return absl::OkStatus();
}

}  // namespace rlhf::rollout
