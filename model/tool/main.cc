// rlhf-model: models offline, for tests, parity checks and preparing models. See docs/algorithms.md.
#include <iostream>
#include <string>

#include <CLI/CLI.hpp>

#include "common/process.h"
#include "common/standard_output.h"
#include "model/tool/commands.h"

namespace tool = rlhf::model::tool;

int main(int argc, char** argv) {
  CLI::App app{"rlhf-model: inspect, make, run and measure models in Hugging Face's layout"};
  app.set_version_flag("--version", rlhf::VersionLine("rlhf-model"));
  app.require_subcommand(1);
  std::string model, config, tokenizer, out, dir;
  std::vector<std::string> files;
  uint64_t seed = 0;
  int vocab_size = 0;
  tool::BenchOptions bench_options;
  tool::GenerateOptions generate_options;
  tool::NumbersOptions numbers_options;
  std::string adapter, dtype;

  auto* inspect = app.add_subcommand("inspect", "print a model's configuration, tensors and digest as JSON");
  inspect->add_option("DIR", dir)->required();
  auto* init = app.add_subcommand("init", "make a randomly initialised model");
  init->add_option("--config", config, "a config.json")->required();
  init->add_option("--tokenizer", tokenizer, "a directory whose tokenizer is copied in");
  init->add_option("--out", out)->required();
  init->add_option("--seed", seed);
  auto* train = app.add_subcommand("train-tokenizer", "train a byte-level BPE on the lines of text files");
  train->add_option("--vocab-size", vocab_size)->required()->check(CLI::Range(260, 1 << 20));
  train->add_option("--out", out)->required();
  train->add_option("FILE", files)->required();
  auto* tokenize =
      app.add_subcommand("tokenize", "a JSON string or {\"messages\": […]} a line in, a JSON array of ids a line out");
  tokenize->add_option("--model", model)->required();
  auto* detokenize = app.add_subcommand("detokenize", "a JSON array of ids a line in, a JSON string a line out");
  detokenize->add_option("--model", model)->required();
  auto* score =
      app.add_subcommand("score", "a JSON array of ids a line in, log-probabilities (or a reward) a line out");
  score->add_option("--model", model)->required();
  auto* generate = app.add_subcommand("generate", "continue a prompt; one JSON string a sample");
  generate->add_option("--model", generate_options.model_dir)->required();
  auto* prompt = generate->add_option_group("prompt", "one of the two");
  prompt->add_option("--prompt", generate_options.prompt, "a text");
  prompt->add_option("--messages", generate_options.messages,
                     "a conversation for the model's chat template: a JSON array of {\"role\", \"content\"}");
  prompt->require_option(1);
  generate->add_option("--max-new-tokens", generate_options.max_new_tokens)->check(CLI::PositiveNumber);
  generate->add_option("--temperature", generate_options.temperature)
      ->check(CLI::Range(0.0, 0.0) | CLI::Range(1e-30, 10.0));
  generate->add_option("--top-p", generate_options.top_p)->check(CLI::Range(1e-6, 1.0));
  generate->add_option("--top-k", generate_options.top_k)->check(CLI::NonNegativeNumber);
  generate->add_option("--seed", generate_options.seed);
  generate->add_option("--n", generate_options.n)->check(CLI::Range(1, 4096));
  auto* bench =
      app.add_subcommand("bench", "measure prefill, decode, scoring and training speed, and a training pass's memory");
  bench->add_option("--model", bench_options.model_dir)->required();
  bench->add_option("--batch", bench_options.batch)->check(CLI::Range(1, 4096));
  bench->add_option("--prompt-tokens", bench_options.prompt_tokens)->check(CLI::PositiveNumber);
  bench->add_option("--new-tokens", bench_options.new_tokens)->check(CLI::PositiveNumber);
  bench->add_option("--precision", bench_options.precision)->check(CLI::IsMember({"float32", "bfloat16"}));
  bench->add_flag("--deterministic", bench_options.deterministic, "batch-invariant kernels");
  bench->add_flag("--gradient-checkpointing", bench_options.gradient_checkpointing,
                  "training keeps each layer's input alone and computes the layer again in backward");
  auto* bench_load = app.add_subcommand("bench-load", "measure loading from the page cache against memcpy");
  bench_load->add_option("--model", model)->required();
  auto* bench_save = app.add_subcommand("bench-save", "measure saving without fsync against memcpy");
  bench_save->add_option("--model", model)->required();
  bench_save->add_option("--out", out, "a folder: the model is saved below it and removed again")->required();
  auto* merge = app.add_subcommand("merge", "write a model anew, with a LoRA adapter (PEFT's layout) merged into it");
  merge->add_option("--model", model, "the adapter's base")->required();
  merge->add_option("--adapter", adapter, "a directory with adapter_config.json; none: the model as it is");
  merge->add_option("--out", out)->required();
  merge->add_option("--dtype", dtype, "of the written weights; default: as they are")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  auto* numbers = app.add_subcommand("numbers", "what a model computes for sequences of ids, as a safetensors file");
  numbers->add_option("--model", numbers_options.model_dir)->required();
  numbers->add_option("--adapter", numbers_options.adapter_dir);
  numbers->add_option("--sequences", numbers_options.sequences_file, "a JSON array of arrays of ids")->required();
  numbers->add_option("--out", numbers_options.out_file)->required();
  numbers->add_option("--dtype", numbers_options.dtype)->check(CLI::IsMember({"float32", "bfloat16"}));
  numbers->add_option("--greedy", numbers_options.greedy, "tokens to generate after each")
      ->check(CLI::Range(1, 1 << 20));
  numbers->add_flag("--decode", numbers_options.decode, "the logits also token by token through the cache");
  numbers->add_flag("--gradients", numbers_options.gradients, "of the first sequence's mean loss");
  numbers->add_flag("--deterministic", numbers_options.deterministic);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : 2;
  }
  absl::Status status;
  if (*inspect) status = tool::Inspect(dir);
  if (*init) status = tool::Init(config, tokenizer, out, seed);
  if (*train) status = tool::TrainTokenizer(files, vocab_size, out);
  if (*tokenize) status = tool::Tokenize(model);
  if (*detokenize) status = tool::Detokenize(model);
  if (*score) status = tool::Score(model);
  if (*generate) status = tool::Generate(generate_options);
  if (*bench) status = tool::Bench(bench_options);
  if (*bench_load) status = tool::BenchLoad(model);
  if (*bench_save) status = tool::BenchSave(model, out);
  if (*merge) status = tool::Merge(model, adapter, out, dtype);
  if (*numbers) status = tool::Numbers(numbers_options);
  status.Update(rlhf::FlushStandardOutput());
  if (status.ok()) return 0;
  std::cerr << "rlhf-model: " << status.message() << "\n";
  return 1;
}
