// The commands of rlhf-model. Each reads its options, works on standard input and output where its line protocol says
// so, and returns what went wrong.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace rlhf::model::tool {

absl::Status Inspect(const std::string& dir);
absl::Status Init(const std::string& config_file, const std::string& tokenizer_dir, const std::string& out_dir,
                  uint64_t seed);
absl::Status TrainTokenizer(const std::vector<std::string>& files, int vocab_size, const std::string& out_dir);
// A JSON string, or {"messages": [{"role", "content"}, …]} for the chat template, a line in; a JSON array of ids a line
// out.
absl::Status Tokenize(const std::string& model_dir);
// The reverse.
absl::Status Detokenize(const std::string& model_dir);
// A JSON array of ids a line in; {"logprobs":[…]} (natural log, one per token after the first) or, of a reward model,
// {"reward":x} a line out.
absl::Status Score(const std::string& model_dir);

struct GenerateOptions {
  std::string model_dir, prompt;
  std::string messages;  // a JSON array of {"role", "content"}; not empty: instead of prompt
  int max_new_tokens = 64, top_k = 0, n = 1;
  double temperature = 1.0, top_p = 1.0;
  uint64_t seed = 0;
};
// One JSON string a sample.
absl::Status Generate(const GenerateOptions& options);
struct BenchOptions {
  std::string model_dir;
  std::string precision = "float32";  // or bfloat16: weights and all that is computed with them, as in the service
  int batch = 16, prompt_tokens = 64, new_tokens = 64;
  bool deterministic = false, gradient_checkpointing = false;
};
// Speed of prefill, decode, scoring (log-probabilities of the same sequences) and of a training pass (forward and
// backward of their mean, gradients summed as the learner does) on made-up tokens, as one JSON object.
// training_peak_bytes: what the training pass adds to resident memory at its peak, gradients included and no optimizer;
// null where /proc does not say.
absl::Status Bench(const BenchOptions& options);

// Loading DIR's weights from the page cache against memcpy of as many bytes in the same run, as one JSON object.
absl::Status BenchLoad(const std::string& model_dir);
// Saving DIR's model into a folder made for it in out_dir, without fsync, against memcpy of as many bytes in the same
// run, as one JSON object.
absl::Status BenchSave(const std::string& model_dir, const std::string& out_dir);
// Reads a model, merges an adapter where there is one, and writes it; dtype empty: as stored.
absl::Status Merge(const std::string& model_dir, const std::string& adapter_dir, const std::string& out_dir,
                   const std::string& dtype);
struct NumbersOptions {
  std::string model_dir, adapter_dir, sequences_file, out_file, dtype = "float32";
  int greedy = 0;
  bool decode = false, gradients = false, deterministic = false;
};
absl::Status Numbers(const NumbersOptions& options);

}  // namespace rlhf::model::tool
