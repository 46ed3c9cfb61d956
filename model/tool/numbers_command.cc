// What a model computes, as tensors in a file: for comparison with another library (tests/parity).
#include <algorithm>

#include <c10/core/InferenceMode.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/model_config.h"
#include "common/durable_file.h"
#include "model/guard.h"
#include "model/kv_cache.h"
#include "model/log_probs.h"
#include "model/lora.h"
#include "model/sampler.h"
#include "model/tool/commands.h"
#include "model/tool/out_path.h"
#include "model/weights_io.h"

namespace rlhf::model::tool {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;
using Tensors = std::vector<std::pair<std::string, torch::Tensor>>;

absl::StatusOr<Sequences> ReadSequences(const std::string& path, int64_t vocabulary) {
  const auto text = ReadFile(path);
  if (!text.ok()) return text.status();
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  const auto bad = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected a JSON array of arrays of ids from 0 to ", vocabulary - 1, ", none empty"));
  };
  if (!json.is_array() || json.empty()) return bad();
  Sequences out;
  for (const auto& row : json) {
    if (!row.is_array() || row.empty()) return bad();
    std::vector<int32_t>& ids = out.emplace_back();
    for (const auto& id : row) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= vocabulary) return bad();
      ids.push_back(id.get<int32_t>());
    }
  }
  return out;
}

// All sequences packed into one batch.
void Forward(const Transformer& model, const Sequences& sequences, Tensors* out) {
  const c10::InferenceMode inference;
  const torch::Tensor hidden = model.Hidden(PackedBatch::FromSequences(sequences));
  int64_t begin = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto length = static_cast<int64_t>(sequences[i].size());
    const torch::Tensor rows = hidden.narrow(0, begin, length);
    begin += length;
    if (model.head() == HeadKind::kLm) {
      out->emplace_back(absl::StrCat("logits/", i), model.Logits(rows));
    } else {
      out->emplace_back(absl::StrCat("values/", i), model.Scalar(rows));
    }
  }
}

// The same logits through the cache, a token a step, all sequences together.
void Decode(const Transformer& model, const Sequences& sequences, Tensors* out) {
  const c10::InferenceMode inference;
  size_t longest = 0;
  for (const auto& sequence : sequences) longest = std::max(longest, sequence.size());
  KvCache cache(model.config(), static_cast<int>(sequences.size()), static_cast<int>(longest), model.dtype(),
                model.device());
  std::vector<std::vector<torch::Tensor>> rows(sequences.size());
  for (size_t t = 0; t < longest; ++t) {
    std::vector<int> slots;
    Sequences inputs;
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (t >= sequences[i].size()) continue;
      slots.push_back(static_cast<int>(i));
      inputs.push_back({sequences[i][t]});
    }
    PackedBatch batch = PackedBatch::FromSequences(inputs);
    batch.position_ids.fill_(static_cast<int64_t>(t));
    const torch::Tensor logits = model.Logits(model.Extend(batch, slots, cache));
    for (size_t k = 0; k < slots.size(); ++k)
      rows[static_cast<size_t>(slots[k])].push_back(logits[static_cast<int64_t>(k)]);
  }
  for (size_t i = 0; i < rows.size(); ++i) out->emplace_back(absl::StrCat("decode/", i), torch::stack(rows[i]));
}

void Greedy(const Transformer& model, const Sequences& prompts, int count, Tensors* out) {
  const c10::InferenceMode inference;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto length = static_cast<int64_t>(prompts[i].size());
    KvCache cache(model.config(), 1, static_cast<int>(length) + count, model.dtype(), model.device());
    torch::Tensor hidden = model.Extend(PackedBatch::FromSequences({prompts[i]}), {0}, cache);
    std::vector<int64_t> tokens;
    while (true) {
      const auto drawn = Sample(model.Logits(hidden), {{.temperature = 0}}, {{}}, {0});
      tokens.push_back(drawn[0].id);
      if (static_cast<int>(tokens.size()) == count) break;
      PackedBatch step = PackedBatch::FromSequences({{drawn[0].id}});
      step.position_ids.fill_(cache.length(0));
      hidden = model.Extend(step, {0}, cache);
    }
    out->emplace_back(absl::StrCat("greedy/", i), torch::tensor(tokens, torch::kInt64));
  }
}

// Of the mean negative log-likelihood of the first sequence's tokens; of a reward model, of its last value.
void Gradients(const Transformer& model, const Sequences& sequences, Tensors* out) {
  for (const auto& [name, parameter] : model.trained_parameters()) torch::Tensor(parameter).requires_grad_(true);
  const PackedBatch batch = PackedBatch::FromSequences({sequences[0]});
  const torch::Tensor hidden = model.Hidden(batch);
  torch::Tensor loss;
  if (model.head() == HeadKind::kLm) {
    const ResponseIndex index = IndexResponses(batch, {1});
    loss = -ChunkedLogProbs(model, hidden.index_select(0, index.rows), index.targets).log_probs.mean();
  } else {
    loss = model.Scalar(hidden.narrow(0, hidden.size(0) - 1, 1)).sum();
  }
  loss.backward();
  for (const auto& [name, parameter] : model.trained_parameters()) {
    if (parameter.grad().defined()) out->emplace_back("grad/" + name, parameter.grad().to(torch::kFloat32));
  }
}

absl::Status Write(Tensors tensors, const std::string& path) {
  for (auto& [name, tensor] : tensors)
    if (tensor.scalar_type() != torch::kInt64) tensor = tensor.to(torch::kFloat32);
  return WriteTensors(path, tensors);
}

}  // namespace

absl::Status Numbers(const NumbersOptions& options) {
  if (absl::Status status = CheckOutFile(options.out_file, {{"--model", options.model_dir},
                                                            {"--adapter", options.adapter_dir},
                                                            {"--sequences", options.sequences_file}});
      !status.ok())
    return status;
  const auto config = artifact::LoadModelConfig(options.model_dir);
  if (!config.ok()) return config.status();
  LoadOptions load;
  load.head = config->num_labels > 0 ? HeadKind::kScalar : HeadKind::kLm;
  load.dtype = options.dtype == "bfloat16" ? torch::kBFloat16 : torch::kFloat32;
  const auto model = LoadModel(options.model_dir, load);
  if (!model.ok()) return model.status();
  if (!options.adapter_dir.empty()) {
    if (absl::Status status = LoadAdapter(options.adapter_dir, model->get()); !status.ok()) return status;
  }
  if (absl::Status status = (*model)->SetDeterministic(options.deterministic); !status.ok()) return status;
  const auto sequences = ReadSequences(options.sequences_file, config->vocab_size);
  if (!sequences.ok()) return sequences.status();
  return Guard("numbers", [&]() -> absl::Status {
    Tensors tensors;
    Forward(**model, *sequences, &tensors);
    if (options.decode) Decode(**model, *sequences, &tensors);
    if (options.greedy > 0) Greedy(**model, *sequences, options.greedy, &tensors);
    if (options.gradients) Gradients(**model, *sequences, &tensors);
    return Write(tensors, options.out_file);
  });
}

}  // namespace rlhf::model::tool
