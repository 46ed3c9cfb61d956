// rlhf-bench: what this machine can do at most, and what the rollout engine makes of it. JSON on standard output.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <c10/core/InferenceMode.h>
#include <torch/cuda.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "bench/engine/weights_bench.h"
#include "common/process.h"
#include "common/status_util.h"
#include "model/device.h"
#include "model/guard.h"
#include "model/weights_io.h"
#include "rollout_worker/engine.h"

namespace rlhf::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Median of five, after one that warms.
double MedianSeconds(const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int run = 0; run < 6; ++run) {
    const auto start = Clock::now();
    work();
    if (run > 0) seconds.push_back(SecondsSince(start));
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

// Until the device has done what it was given.
void Finish(torch::Device device) {
  if (device.is_cuda()) torch::cuda::synchronize(device.index());
}

// 2 · rows · columns · inner operations through LibTorch, in GFLOP/s.
double GemmGflops(int64_t rows, int64_t columns, int64_t inner, torch::Dtype dtype, torch::Device device) {
  const c10::InferenceMode inference;
  const torch::Tensor a = torch::rand({rows, inner}).to(device, dtype),
                      b = torch::rand({columns, inner}).to(device, dtype);
  const int64_t operations = device.is_cpu() ? 2'000'000'000 : 2'000'000'000'000;
  const int64_t repeats = std::max<int64_t>(1, operations / (2 * rows * columns * inner));
  const double seconds = MedianSeconds([&] {
    for (int64_t i = 0; i < repeats; ++i) torch::linear(a, b);
    Finish(device);
  });
  return 2e-9 * static_cast<double>(rows * columns * inner * repeats) / seconds;
}

// Of a device's memory, and of the way there, in bytes a second; matrix products on it.
absl::Status DeviceLimits(torch::Device device) {
  return model::Guard("limits", [&]() -> absl::Status {
    const c10::InferenceMode inference;
    constexpr int64_t kBytes = int64_t{1} << 30;
    const auto bytes = torch::TensorOptions().dtype(torch::kByte);
    const torch::Tensor pageable = torch::ones({kBytes}, bytes), pinned = pageable.pin_memory();
    torch::Tensor there = torch::empty({kBytes}, bytes.device(device)), other = torch::empty_like(there);
    const auto rate = [&](const std::function<void()>& work) {
      return static_cast<double>(kBytes) / MedianSeconds([&] {
               work();
               Finish(device);
             }) /
             1e9;
    };
    Json out;
    out["device"] = device.str();
    out["copy_gb_per_second"] = rate([&] { other.copy_(there, /*non_blocking=*/true); });
    const torch::Tensor floats = there.view(torch::kFloat32);
    out["read_gb_per_second"] = rate([&] { floats.sum(); });
    out["to_device_gb_per_second"]["pageable"] = rate([&] { there.copy_(pageable); });
    out["to_device_gb_per_second"]["pinned"] = rate([&] { there.copy_(pinned, /*non_blocking=*/true); });
    out["to_device_gb_per_second"]["staged"] = rate([&] { model::CopyInto(there, pageable); });
    Json& gemm = out["gemm_gflops"];
    for (const auto& [name, dtype] : {std::pair("float32", torch::kFloat32), std::pair("bfloat16", torch::kBFloat16)}) {
      gemm[name]["8192x8192x8192"] = GemmGflops(8192, 8192, 8192, dtype, device);
      gemm[name]["64x4096x4096"] = GemmGflops(64, 4096, 4096, dtype, device);
    }
    std::cout << out.dump() << "\n";
    return absl::OkStatus();
  });
}

absl::Status Limits() {
  return model::Guard("limits", [&]() -> absl::Status {
    constexpr size_t kBytes = size_t{256} << 20;
    const std::unique_ptr<char[]> source(new char[kBytes]), target(new char[kBytes]);
    std::memset(source.get(), 1, kBytes);
    std::memset(target.get(), 1, kBytes);
    const double copy = MedianSeconds([&] { std::memcpy(target.get(), source.get(), kBytes); });
    const torch::Tensor floats = torch::ones({static_cast<int64_t>(kBytes / sizeof(float))});
    double sum = 0;
    const double read = MedianSeconds([&] { sum += floats.sum().item<double>(); });
    Json out;
    out["threads"] = torch::get_num_threads();
    out["memcpy_gb_per_second"] = kBytes / copy / 1e9;
    out["read_gb_per_second"] = sum > 0 ? kBytes / read / 1e9 : 0;
    Json& gemm = out["gemm_gflops"];
    for (const auto& [name, dtype] : {std::pair("float32", torch::kFloat32), std::pair("bfloat16", torch::kBFloat16)}) {
      gemm[name]["2048x2048x2048"] = GemmGflops(2048, 2048, 2048, dtype, torch::kCPU);
      gemm[name]["2048x288x768"] = GemmGflops(2048, 288, 768, dtype, torch::kCPU);
      gemm[name]["64x768x288"] = GemmGflops(64, 768, 288, dtype, torch::kCPU);
    }
    std::cout << out.dump() << "\n";
    return absl::OkStatus();
  });
}

struct GenerateFlags {
  std::string model, precision = "float32";
  torch::Device device = torch::kCPU;
  int requests = 64, slots = 64, prompt_tokens = 64, new_tokens = 128, least_new_tokens = 0;
  bool fixed_batches = false, deterministic = false, cuda_graphs = true;
  uint64_t seed = 0;
};

absl::StatusOr<std::unique_ptr<rollout::Engine>> MakeEngine(const GenerateFlags& flags) {
  model::LoadOptions load;
  load.int8 = flags.precision == "int8";
  load.join_projections = true;
  load.device = flags.device;
  load.dtype = flags.precision == "bfloat16" ? torch::kBFloat16 : torch::kFloat32;
  RLHF_ASSIGN_OR_RETURN(auto policy, model::LoadModel(flags.model, load));
  RLHF_RETURN_IF_ERROR(policy->SetDeterministic(flags.deterministic));
  RLHF_ASSIGN_OR_RETURN(auto tokenizer, artifact::Tokenizer::Load(flags.model));
  rollout::EngineOptions options;
  options.slots = flags.slots;
  options.cuda_graphs = flags.cuda_graphs;
  options.shared_prefixes = 0;  // the prompts are there to be computed
  return std::make_unique<rollout::Engine>(std::move(policy), std::move(tokenizer), v1::PolicyVersion(), options);
}

// A text of about so many tokens that no other request begins with.
std::string Text(int request, int tokens) {
  std::string text = absl::StrCat(request, " ");
  for (int i = 0; static_cast<int>(text.size()) < tokens; ++i)
    text.push_back(static_cast<char>('a' + (request + i * 7) % 26));
  return text;
}

absl::Status Generate(const GenerateFlags& flags) {
  RLHF_ASSIGN_OR_RETURN(const auto engine, MakeEngine(flags));
  std::mt19937_64 random(flags.seed);
  std::vector<v1::PromptLease> leases;
  for (int i = 0; i < flags.requests; ++i) {
    v1::PromptLease& lease = leases.emplace_back();
    lease.set_job_id("bench");
    lease.set_step(1);
    lease.set_ordinal(i);
    lease.set_seed(flags.seed);
    lease.mutable_prompt()->set_text(Text(i, flags.prompt_tokens));
    lease.mutable_sampling()->set_temperature(1);
    const int least = flags.least_new_tokens > 0 ? flags.least_new_tokens : flags.new_tokens;
    lease.mutable_sampling()->set_max_new_tokens(std::uniform_int_distribution<int>(least, flags.new_tokens)(random));
    lease.add_samples()->set_attempt(1);
  }
  int64_t steps = 0;
  const auto finish = [&]() -> absl::Status {
    while (!engine->idle()) {
      RLHF_RETURN_IF_ERROR(engine->Step().status());
      ++steps;
    }
    return absl::OkStatus();
  };
  const auto generate = [&]() -> absl::Status {
    for (int i = 0; i < flags.requests; ++i) {
      RLHF_RETURN_IF_ERROR(engine->Add(leases[static_cast<size_t>(i)]));
      if (flags.fixed_batches && (i + 1) % flags.slots == 0) RLHF_RETURN_IF_ERROR(finish());
    }
    return finish();
  };
  // What the first steps allocate is not what is measured. On a GPU each batch size has a graph that is recorded when
  // it first comes: all of it once before.
  if (flags.device.is_cuda()) {
    RLHF_RETURN_IF_ERROR(generate());
  } else {
    RLHF_RETURN_IF_ERROR(engine->Add(leases.front()));
    RLHF_RETURN_IF_ERROR(finish());
  }
  const rollout::Engine::Counters before = engine->counters();
  steps = 0;
  const auto start = Clock::now();
  RLHF_RETURN_IF_ERROR(generate());
  const double seconds = SecondsSince(start);
  const int64_t generated = engine->counters().generated_tokens - before.generated_tokens;
  Json out;
  out["device"] = flags.device.str();
  out["requests"] = flags.requests;
  out["slots"] = flags.slots;
  out["prompt_tokens"] = engine->counters().prompt_tokens - before.prompt_tokens;
  out["generated_tokens"] = generated;
  out["steps"] = steps;
  if (const model::DecodeGraphs* graphs = engine->decode_graphs()) {
    out["cuda_graphs"] = {{"recorded", graphs->counters().recorded},
                          {"replayed", graphs->counters().replayed},
                          {"steps_without", graphs->counters().without},
                          {"failure", graphs->failure()}};
  }
  out["seconds"] = seconds;
  out["tokens_per_second"] = static_cast<double>(generated) / seconds;
  std::cout << out.dump() << "\n";
  return absl::OkStatus();
}

absl::Status Weights(const std::string& model_dir, int rounds) {
  RLHF_ASSIGN_OR_RETURN(const Json out, MeasureWeights(model_dir, rounds));
  std::cout << out.dump() << "\n";
  return absl::OkStatus();
}

}  // namespace
}  // namespace rlhf::bench

int main(int argc, char** argv) {
  rlhf::BeginProcess();
  CLI::App app{"rlhf-bench: what this machine can do at most, and what the rollout engine makes of it"};
  app.require_subcommand(1);
  int threads = 1;
  app.add_option("--threads", threads, "Compute threads")->check(CLI::Range(1, 1024))->capture_default_str();
  std::string device_text = "cpu";
  app.add_option("--device", device_text, "cpu or cuda:N, for limits and generate")->capture_default_str();
  auto* limits = app.add_subcommand("limits", "copy and read bandwidth of the memory, and matrix products");
  rlhf::bench::GenerateFlags flags;
  auto* generate = app.add_subcommand("generate", "the rollout engine on made-up prompts, their prefill included");
  generate->add_option("--model", flags.model, "A model's directory, with its tokenizer")->required();
  generate->add_option("--requests", flags.requests)->check(CLI::PositiveNumber)->capture_default_str();
  generate->add_option("--slots", flags.slots)->check(CLI::Range(1, 4096))->capture_default_str();
  generate->add_option("--prompt-tokens", flags.prompt_tokens, "About so many")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  generate->add_option("--new-tokens", flags.new_tokens, "At most")->check(CLI::PositiveNumber)->capture_default_str();
  generate
      ->add_option("--least-new-tokens", flags.least_new_tokens,
                   "Lengths are uniform from here to --new-tokens; 0: all are --new-tokens")
      ->check(CLI::NonNegativeNumber);
  generate->add_flag("--fixed-batches", flags.fixed_batches, "A batch of --slots waits for its longest sequence");
  generate->add_option("--precision", flags.precision)->check(CLI::IsMember({"float32", "bfloat16", "int8"}));
  generate->add_flag("!--no-cuda-graphs", flags.cuda_graphs, "Launch each kernel of a step by itself");
  generate->add_flag("--deterministic", flags.deterministic);
  generate->add_option("--seed", flags.seed);
  auto* weights =
      app.add_subcommand("weights", "from a learner's publisher into a rollout worker's model, over loopback");
  std::string weights_model;
  int rounds = 5;
  weights->add_option("--model", weights_model, "A model's directory")->required();
  weights->add_option("--rounds", rounds)->check(CLI::PositiveNumber)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (flags.least_new_tokens > flags.new_tokens) {
    std::cerr << "rlhf-bench: --least-new-tokens: expected at most --new-tokens (" << flags.new_tokens << "), found "
              << flags.least_new_tokens << "\n";
    return 2;
  }
  const absl::StatusOr<torch::Device> device = rlhf::model::ParseDevice(device_text);
  if (!device.ok() || (*weights && !device->is_cpu())) {
    std::cerr << "rlhf-bench: --device: "
              << (device.ok() ? "weights are measured on the cpu" : std::string(device.status().message())) << "\n";
    return 2;
  }
  flags.device = *device;
  torch::set_num_threads(threads);
  const absl::Status status = *limits ? (device->is_cpu() ? rlhf::bench::Limits() : rlhf::bench::DeviceLimits(*device))
                              : *weights ? rlhf::bench::Weights(weights_model, rounds)
                                         : rlhf::bench::Generate(flags);
  if (status.ok()) return 0;
  std::cerr << "rlhf-bench: " << status.message() << "\n";
  return 1;
}
