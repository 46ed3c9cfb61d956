#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <optional>
#include <thread>

#include <c10/core/InferenceMode.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "learner/gradient_buckets.h"
#include "model/guard.h"
#include "model/kv_cache.h"
#include "model/log_probs.h"
#include "model/sampler.h"
#include "model/tensor_memory.h"
#include "model/tool/commands.h"
#include "model/weights_io.h"

namespace rlhf::model::tool {
namespace {

using nlohmann::json;
using Sequences = std::vector<std::vector<int32_t>>;
using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Resident memory of this process, by its name in /proc/self/status, in bytes; nothing where the kernel does not say.
std::optional<int64_t> StatusBytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    long long kilobytes = 0;
    if (line.rfind(name + ":", 0) == 0 && std::sscanf(line.c_str() + name.size() + 1, "%lld", &kilobytes) == 1)
      return kilobytes * 1024;
  }
  return std::nullopt;
}

// How far resident memory rises above what it is now (proc(5): 5 into clear_refs makes VmHWM what is resident).
class PeakMemory {
 public:
  PeakMemory() {
    malloc_trim(0);
    std::ofstream reset("/proc/self/clear_refs");
    if (reset << "5" << std::flush) before_ = StatusBytes("VmRSS");
  }
  std::optional<int64_t> Growth() const {
    const std::optional<int64_t> peak = StatusBytes("VmHWM");
    return before_ && peak ? std::optional<int64_t>(*peak - *before_) : std::nullopt;
  }

 private:
  std::optional<int64_t> before_;
};

struct TrainingPass {
  double seconds = 0;
  std::optional<int64_t> peak_bytes;
};

// Forward and backward of the mean, with the learner's sums of gradients: in float32 whatever the model's type. The
// first pass, which allocates, for memory; the median of five more for time.
TrainingPass Train(Transformer* model, const Sequences& sequences) {
  std::vector<torch::Tensor> leaves;
  for (const auto& [name, parameter] : model->named_parameters()) leaves.push_back(parameter);
  for (torch::Tensor& leaf : leaves) leaf.requires_grad_(true);
  TrainingPass pass;
  const PeakMemory memory;
  {
    learner::GradientBuckets gradients(leaves);
    const std::unique_ptr<learner::Collective> alone = learner::MakeSingleRank();
    std::vector<double> seconds;
    for (int run = 0; run < 6; ++run) {
      const auto start = Clock::now();
      const PackedBatch batch = PackedBatch::FromSequences(sequences);
      const ResponseIndex index = IndexResponses(batch, std::vector<int64_t>(sequences.size(), 1));
      gradients.Begin();
      const absl::Status status =
          gradients.Backward(ResponseLogProbs(*model, batch, index).log_probs.mean(), /*last=*/true, alone.get());
      TORCH_CHECK(status.ok() && gradients.Wait().ok(), status.ToString());
      if (run > 0) seconds.push_back(SecondsSince(start));
      if (run == 0) pass.peak_bytes = memory.Growth();
    }
    std::sort(seconds.begin(), seconds.end());
    pass.seconds = seconds[seconds.size() / 2];
  }
  for (torch::Tensor& leaf : leaves) leaf.requires_grad_(false);
  return pass;
}

// Log-probabilities of every token, as a reward server computes a reference's. The second of two passes.
double ScoringSeconds(const Transformer& model, const Sequences& sequences) {
  double seconds = 0;
  for (int run = 0; run < 2; ++run) {
    const auto start = std::chrono::steady_clock::now();
    const PackedBatch batch = PackedBatch::FromSequences(sequences);
    const ResponseIndex index = IndexResponses(batch, std::vector<int64_t>(sequences.size(), 1));
    ResponseLogProbs(model, batch, index).log_probs.sum().item<double>();
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return seconds;
}

// Fills the slots with the prompts and decodes from them; seconds of both.
std::pair<double, double> GenerationSeconds(const Transformer& model, const Sequences& prompts, int new_tokens) {
  const auto batch = static_cast<int>(prompts.size()), prompt_tokens = static_cast<int>(prompts[0].size());
  std::vector<int> slots;
  for (int i = 0; i < batch; ++i) slots.push_back(i);
  KvCache cache(model.config(), batch, prompt_tokens + new_tokens, model.dtype(), model.device());
  const auto start = Clock::now();
  torch::Tensor hidden = model.Extend(PackedBatch::FromSequences(prompts), slots, cache);
  const double prefill = SecondsSince(start);
  const auto filled = Clock::now();
  const std::vector<SamplingParams> params(prompts.size());
  for (int t = 0; t < new_tokens; ++t) {
    std::vector<NoiseKey> keys(prompts.size());
    for (int i = 0; i < batch; ++i) keys[static_cast<size_t>(i)].index = static_cast<uint32_t>(i);
    const auto tokens =
        Sample(model.Logits(hidden), params, keys, std::vector<uint32_t>(prompts.size(), static_cast<uint32_t>(t)));
    Sequences next;
    for (const auto& token : tokens) next.push_back({token.id});
    PackedBatch step = PackedBatch::FromSequences(next);
    step.position_ids = torch::full({batch}, prompt_tokens + t, torch::kInt64);
    if (t + 1 < new_tokens) hidden = model.Extend(step, slots, cache);
  }
  return {prefill, SecondsSince(filled)};
}

}  // namespace

absl::Status Bench(const BenchOptions& options) {
  LoadOptions load;
  load.dtype = options.precision == "bfloat16" ? torch::kBFloat16 : torch::kFloat32;
  KeepTensorMemory();  // as the learner does
  const auto model = LoadModel(options.model_dir, load);
  if (!model.ok()) return model.status();
  if (options.prompt_tokens + options.new_tokens > (*model)->config().max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat("--prompt-tokens and --new-tokens: expected at most ",
                                                   (*model)->config().max_position_embeddings, " together, found ",
                                                   options.prompt_tokens + options.new_tokens));
  }
  if (absl::Status status = (*model)->SetDeterministic(options.deterministic); !status.ok()) return status;
  (*model)->SetGradientCheckpointing(options.gradient_checkpointing);
  absl::Status measured;
  const auto measure = [&]() -> absl::Status {
    torch::manual_seed(0);
    const int64_t vocabulary = (*model)->config().vocab_size;
    Sequences prompts(static_cast<size_t>(options.batch));
    for (int i = 0; i < options.batch; ++i) {
      for (int t = 0; t < options.prompt_tokens; ++t)
        prompts[static_cast<size_t>(i)].push_back(static_cast<int32_t>((i * 31 + t * 7 + 3) % vocabulary));
    }
    const TrainingPass training = Train(model->get(), prompts);
    const c10::InferenceMode inference;
    const double scoring = ScoringSeconds(**model, prompts);
    const auto [prefill, decode] = GenerationSeconds(**model, prompts, options.new_tokens);
    const int tokens = options.batch * options.prompt_tokens;
    json out;
    out["prefill_tokens_per_second"] = tokens / prefill;
    out["decode_tokens_per_second"] = options.batch * options.new_tokens / decode;
    out["scoring_tokens_per_second"] = tokens / scoring;
    out["training_tokens_per_second"] = tokens / training.seconds;
    out["training_peak_bytes"] = training.peak_bytes ? json(*training.peak_bytes) : json();
    out["batch"] = options.batch;
    out["precision"] = options.precision;
    out["gradient_checkpointing"] = options.gradient_checkpointing;
    std::cout << out.dump() << "\n";
    return absl::OkStatus();
  };
  // A thread of its own, as a learner trains in: its memory comes from another arena than the first thread's.
  std::thread([&] { measured = Guard("bench", measure); }).join();
  return measured;
}

}  // namespace rlhf::model::tool
