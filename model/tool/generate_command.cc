#include <iostream>

#include <c10/core/InferenceMode.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/dataset.h"
#include "artifact/prompt.h"
#include "artifact/tokenizer.h"
#include "model/guard.h"
#include "model/kv_cache.h"
#include "model/sampler.h"
#include "model/tool/commands.h"
#include "model/weights_io.h"

namespace rlhf::model::tool {
namespace {

using nlohmann::json;

// One prompt, n samples that share its prefill; slots advance together until each has ended.
std::vector<std::vector<int32_t>> SampleAll(const Transformer& model, const std::vector<int32_t>& prompt,
                                            const GenerateOptions& options, const artifact::Tokenizer& tokenizer,
                                            int max_new) {
  const auto length = static_cast<int64_t>(prompt.size());
  KvCache cache(model.config(), options.n, static_cast<int>(length) + max_new, model.dtype(), model.device());
  const torch::Tensor first = model.Extend(PackedBatch::FromSequences({prompt}), {0}, cache);
  for (int i = 1; i < options.n; ++i) {
    cache.CopyPrefix(0, i, length);
    cache.SetLength(i, length);
  }
  SamplingParams params;
  params.temperature = options.temperature;
  params.top_p = options.top_p;
  params.top_k = options.top_k;
  std::vector<std::vector<int32_t>> out(static_cast<size_t>(options.n));
  std::vector<int> running;
  for (int i = 0; i < options.n; ++i) running.push_back(i);
  torch::Tensor hidden = first.expand({options.n, first.size(1)}).contiguous();
  for (int t = 0; t < max_new && !running.empty(); ++t) {
    std::vector<NoiseKey> keys;
    for (const int i : running) {
      NoiseKey key;
      key.seed = options.seed;
      key.index = static_cast<uint32_t>(i);
      keys.push_back(key);
    }
    const auto tokens = Sample(model.Logits(hidden), std::vector<SamplingParams>(running.size(), params), keys,
                               std::vector<uint32_t>(running.size(), static_cast<uint32_t>(t)));
    std::vector<int> still;
    std::vector<std::vector<int32_t>> next;
    for (size_t r = 0; r < running.size(); ++r) {
      if (tokenizer.EndsText(tokens[r].id)) continue;
      out[static_cast<size_t>(running[r])].push_back(tokens[r].id);
      still.push_back(running[r]);
      next.push_back({tokens[r].id});
    }
    running = still;
    if (running.empty() || t + 1 == max_new) break;
    PackedBatch batch = PackedBatch::FromSequences(next);
    batch.position_ids = torch::full({static_cast<int64_t>(running.size())}, length + t, torch::kInt64);
    hidden = model.Extend(batch, running, cache);
  }
  return out;
}

}  // namespace

absl::Status Generate(const GenerateOptions& options) {
  const auto tokenizer = artifact::Tokenizer::Load(options.model_dir);
  if (!tokenizer.ok()) return tokenizer.status();
  const auto model = LoadModel(options.model_dir);
  if (!model.ok()) return model.status();
  std::vector<artifact::ChatMessage> messages;
  if (!options.messages.empty()) {
    auto parsed = artifact::ParseMessages(options.messages, "--messages");
    if (!parsed.ok()) return parsed.status();
    messages = *std::move(parsed);
  }
  const auto prompt = artifact::EncodePrompt(**tokenizer, options.prompt, messages);
  if (!prompt.ok()) return prompt.status();
  const int64_t room = (*model)->config().max_position_embeddings - static_cast<int64_t>(prompt->size());
  if (prompt->empty() || room < 1) {
    return absl::InvalidArgumentError(absl::StrCat("--prompt: expected 1 to ",
                                                   (*model)->config().max_position_embeddings - 1,
                                                   " tokens (the context less one), found ", prompt->size()));
  }
  return Guard("generate", [&]() -> absl::Status {
    const c10::InferenceMode inference;
    const int max_new = static_cast<int>(std::min<int64_t>(room, options.max_new_tokens));
    for (const auto& ids : SampleAll(**model, *prompt, options, **tokenizer, max_new)) {
      const auto text = (*tokenizer)->Decode(ids);
      if (!text.ok()) return text.status();
      std::cout << json(*text).dump(-1, ' ', false, json::error_handler_t::replace) << "\n";
    }
    return absl::OkStatus();
  });
}

}  // namespace rlhf::model::tool
