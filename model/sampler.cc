#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <ATen/Parallel.h>

#include "model/device_ops.h"
#include "model/kernels/cpu_kernels.h"

namespace rlhf::model {
namespace {

// The tokens that top-k, then top-p keep (Hugging Face's order), most probable first, and their mass.
double Keep(const SamplingParams& params, const float* exps, int64_t width, std::vector<int32_t>* kept) {
  kept->resize(static_cast<size_t>(width));
  std::iota(kept->begin(), kept->end(), 0);
  // Equal probabilities are ordered by id, so that the choice does not depend on the sort.
  const auto more_probable = [exps](int32_t a, int32_t b) { return exps[a] != exps[b] ? exps[a] > exps[b] : a < b; };
  if (params.top_k > 0 && params.top_k < width) {
    std::partial_sort(kept->begin(), kept->begin() + params.top_k, kept->end(), more_probable);
    kept->resize(static_cast<size_t>(params.top_k));
  } else {
    std::sort(kept->begin(), kept->end(), more_probable);
  }
  double mass = 0;
  for (const int32_t id : *kept) mass += exps[id];
  if (params.top_p < 1.0) {
    // The smallest set with at least top_p of what top-k left, the crossing token included.
    const double wanted = params.top_p * mass;
    double sum = 0;
    size_t count = 0;
    while (count < kept->size() && sum < wanted) sum += exps[(*kept)[count++]];
    kept->resize(std::max<size_t>(count, 1));
    mass = count == 0 ? exps[(*kept)[0]] : sum;
  }
  return mass;
}

constexpr int64_t kBlock = 64;

// Σ of each block of kBlock numbers, and of all. Four sums at once: they do not wait for one another.
double BlockSums(const float* x, int64_t width, std::vector<double>* sums) {
  sums->clear();
  double total = 0;
  for (int64_t begin = 0; begin < width; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, width);
    double part[4] = {};
    int64_t i = begin;
    for (; i + 4 <= end; i += 4) {
      for (int64_t j = 0; j < 4; ++j) part[j] += x[i + j];
    }
    for (; i < end; ++i) part[0] += x[i];
    sums->push_back((part[0] + part[1]) + (part[2] + part[3]));
    total += sums->back();
  }
  return total;
}

// The first index at which the running sum exceeds the target; where rounding lets none, the last that adds to it.
int32_t Find(const float* x, int64_t width, const std::vector<double>& sums, double target) {
  double sum = 0;
  size_t block = 0;
  for (; block + 1 < sums.size() && sum + sums[block] <= target; ++block) sum += sums[block];
  int32_t found = -1;
  for (int64_t i = static_cast<int64_t>(block) * kBlock; i < width; ++i) {
    if (x[i] > 0) found = static_cast<int32_t>(i);
    sum += x[i];
    if (found >= 0 && sum > target) return found;
  }
  for (int64_t i = width - 1; found < 0 && i >= 0; --i) {
    if (x[i] > 0) found = static_cast<int32_t>(i);
  }
  return found;
}

// A thread's own memory.
struct Scratch {
  std::vector<float> exps;
  std::vector<double> sums;
  std::vector<int32_t> kept;
};

SampledToken SampleRow(const float* row, int64_t width, const SamplingParams& params, const NoiseKey& key,
                       uint32_t position, Scratch* scratch) {
  const bool greedy = params.temperature <= 0;
  const float inverse = greedy ? 1.0F : static_cast<float>(1.0 / params.temperature);
  scratch->exps.resize(static_cast<size_t>(width));
  float* const exps = scratch->exps.data();
  float highest = 0;
  const float log_sum = kernels::LogSumExp(row, width, inverse, exps, &highest);
  SampledToken token;
  if (greedy) {
    token.id = static_cast<int32_t>(std::max_element(row, row + width) - row);
  } else {
    const double total = BlockSums(exps, width, &scratch->sums), uniform = PhiloxUniform(key, position);
    if (params.top_p < 1.0 || (params.top_k > 0 && params.top_k < width)) {
      const double mass = Keep(params, exps, width, &scratch->kept);
      token.log_kept_mass = static_cast<float>(std::log(mass / total));
      double sum = 0;
      token.id = -1;
      for (const int32_t id : scratch->kept) {
        sum += exps[id];
        token.id = id;
        if (sum > uniform * mass) break;
      }
    } else {
      token.id = Find(exps, width, scratch->sums, uniform * total);
    }
  }
  // Logits that are not numbers have no token.
  token.log_prob = token.id < 0 ? std::numeric_limits<float>::quiet_NaN() : row[token.id] * inverse - log_sum;
  return token;
}

}  // namespace

kernels::PhiloxCounter NoiseOf(const NoiseKey& key, uint32_t position) {
  // The stream takes part through the key's high word; counter words are step, ordinal, index and position.
  return {{key.step, key.ordinal, key.index, position},
          {static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32) ^ (key.stream * 0x9E3779B9U)}};
}

double PhiloxUniform(const NoiseKey& key, uint32_t position) {
  return kernels::PhiloxUniform(NoiseOf(key, position));
}

std::vector<SampledToken> Sample(const torch::Tensor& logits, const std::vector<SamplingParams>& params,
                                 const std::vector<NoiseKey>& keys, const std::vector<uint32_t>& positions) {
  if (HasDeviceSampler(logits)) return SampleOnDevice(logits, params, keys, positions);
  const torch::Tensor rows = logits.detach().to(torch::kCPU, torch::kFloat32).contiguous();
  const int64_t width = rows.size(1);
  std::vector<SampledToken> out(static_cast<size_t>(rows.size(0)));
  const float* const data = rows.data_ptr<float>();
  // Threads of their own memory, and of a few rows at least.
  at::parallel_for(0, rows.size(0), std::max<int64_t>(1, 16384 / width), [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t b = begin; b < end; ++b) {
      const auto i = static_cast<size_t>(b);
      out[i] = SampleRow(data + b * width, width, params[i], keys[i], positions[i], &scratch);
    }
  });
  return out;
}

}  // namespace rlhf::model
