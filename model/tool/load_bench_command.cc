#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/model_config.h"
#include "artifact/safetensors.h"
#include "common/large_memory.h"
#include "model/tool/commands.h"
#include "model/weights_io.h"

namespace rlhf::model::tool {
namespace {

constexpr int kRuns = 5;

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double GbPerSecond(size_t bytes, const std::vector<double>& seconds) {
  return static_cast<double>(bytes) / Median(seconds) / 1e9;
}

// How a model is loaded in the type and with the head that it is stored with, and the bytes of its tensors.
absl::StatusOr<std::pair<LoadOptions, size_t>> AsStored(const std::string& model_dir) {
  const auto config = artifact::LoadModelConfig(model_dir);
  if (!config.ok()) return config.status();
  const auto weights = artifact::OpenModelWeights(model_dir);
  if (!weights.ok()) return weights.status();
  size_t bytes = 0;
  for (const auto& [name, entry] : weights->tensors) bytes += entry.info->end - entry.info->begin;
  LoadOptions options;
  options.head = config->num_labels > 0 ? HeadKind::kScalar : HeadKind::kLm;
  options.dtype = config->dtype == "bfloat16"  ? torch::kBFloat16
                  : config->dtype == "float16" ? torch::kFloat16
                                               : torch::kFloat32;
  return std::make_pair(options, bytes);
}

// Takes so much memory from the kernel and gives it back.
void TouchNewMemory(size_t bytes) {
  constexpr size_t kPage = 4096;
  const std::shared_ptr<uint8_t[]> memory = AllocateLarge(bytes);
  for (size_t at = 0; at < bytes; at += kPage) memory[at] = 1;
  asm volatile("" : : "r"(memory.get()) : "memory");
}

}  // namespace

absl::Status BenchLoad(const std::string& model_dir) {
  const auto stored = AsStored(model_dir);
  if (!stored.ok()) return stored.status();
  const LoadOptions options = stored->first;
  const size_t bytes = stored->second;
  // Alternating, so that a busy neighbour slows both alike. The copy's source and target are warm; the other copy goes
  // to memory that the process does not have yet, as a load's must. Before both the kernel gets as much: one in a
  // virtual machine gives what is free for two seconds back to the host, and taking it from there is a figure by
  // itself.
  const std::unique_ptr<char[]> source(new char[bytes]), target(new char[bytes]);
  std::memset(source.get(), 1, bytes);
  std::memset(target.get(), 1, bytes);
  std::vector<double> touches, copies, fresh_copies, loads;
  absl::Status failed;
  for (int run = 0; run < kRuns + 1; ++run) {
    const double copy = Seconds([&] { std::memcpy(target.get(), source.get(), bytes); });
    const double touched = Seconds([&] { TouchNewMemory(bytes); });
    const double fresh = Seconds([&] {
      const std::shared_ptr<uint8_t[]> cold = AllocateLarge(bytes);
      std::memcpy(cold.get(), source.get(), bytes);
      asm volatile("" : : "r"(cold.get()) : "memory");  // else a copy that nobody reads is left out
    });
    const double load = Seconds([&] { failed.Update(LoadModel(model_dir, options).status()); });
    if (!failed.ok()) return failed;
    if (run == 0) continue;  // warms the page cache
    touches.push_back(touched);
    copies.push_back(copy);
    fresh_copies.push_back(fresh);
    loads.push_back(load);
  }
  const auto rate = [&](const std::vector<double>& seconds) { return GbPerSecond(bytes, seconds); };
  nlohmann::ordered_json out;
  out["bytes"] = bytes;
  out["load_gb_per_second"] = rate(loads);
  out["memcpy_gb_per_second"] = rate(copies);
  out["new_memory_gb_per_second"] = rate(touches);
  out["memcpy_to_fresh_memory_gb_per_second"] = rate(fresh_copies);
  out["load_over_memcpy"] = rate(loads) / rate(copies);
  out["load_over_memcpy_to_fresh_memory"] = rate(loads) / rate(fresh_copies);
  std::cout << out.dump() << "\n";
  return absl::OkStatus();
}

absl::Status BenchSave(const std::string& model_dir, const std::string& out_dir) {
  const auto stored = AsStored(model_dir);
  if (!stored.ok()) return stored.status();
  const auto model = LoadModel(model_dir, stored->first);
  if (!model.ok()) return model.status();
  size_t bytes = 0;
  for (const auto& [name, parameter] : (*model)->named_parameters()) bytes += parameter.nbytes();
  const std::unique_ptr<char[]> source(new char[bytes]), target(new char[bytes]);
  std::memset(source.get(), 1, bytes);
  std::memset(target.get(), 1, bytes);
  const std::string scratch = absl::StrCat(out_dir, "/rlhf-bench-save-", getpid());
  std::vector<double> copies, saves;
  absl::Status failed;
  for (int run = 0; run < kRuns + 1; ++run) {
    const double copy = Seconds([&] { std::memcpy(target.get(), source.get(), bytes); });
    const double save = Seconds([&] { failed.Update(SaveModel(**model, scratch, "", Durability::kCached)); });
    // Every run makes files of its own: none pays for taking back the pages of those before.
    std::error_code error;
    std::filesystem::remove_all(scratch, error);
    if (!failed.ok()) return failed;
    if (run == 0) continue;
    copies.push_back(copy);
    saves.push_back(save);
  }
  nlohmann::ordered_json out;
  out["bytes"] = bytes;
  out["save_gb_per_second"] = GbPerSecond(bytes, saves);
  out["memcpy_gb_per_second"] = GbPerSecond(bytes, copies);
  out["save_over_memcpy"] = GbPerSecond(bytes, saves) / GbPerSecond(bytes, copies);
  std::cout << out.dump() << "\n";
  return absl::OkStatus();
}

}  // namespace rlhf::model::tool
