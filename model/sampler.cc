#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

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
  std::vector<float> exps(static_cast<size_t>(width));
  std::vector<int32_t> kept;
  for (size_t b = 0; b < out.size(); ++b) {
    const float* row = rows.data_ptr<float>() + static_cast<int64_t>(b) * width;
    const bool greedy = params[b].temperature <= 0;
    const float inverse = greedy ? 1.0F : static_cast<float>(1.0 / params[b].temperature);
    float highest = 0;
    const float log_sum = kernels::LogSumExp(row, width, inverse, exps.data(), &highest);
    SampledToken& token = out[b];
    if (greedy) {
      token.id = static_cast<int32_t>(std::max_element(row, row + width) - row);
    } else {
      double total = 0;
      for (int64_t i = 0; i < width; ++i) total += exps[i];
      const bool truncated = params[b].top_p < 1.0 || (params[b].top_k > 0 && params[b].top_k < width);
      const double mass = truncated ? Keep(params[b], exps.data(), width, &kept) : total;
      const double target = PhiloxUniform(keys[b], positions[b]) * mass;
      double sum = 0;
      token.id = -1;
      if (truncated) {
        token.log_kept_mass = static_cast<float>(std::log(mass / total));
        for (const int32_t id : kept) {
          sum += exps[id];
          token.id = id;
          if (sum > target) break;
        }
      } else {
        for (int64_t i = 0; i < width; ++i) {
          if (exps[i] > 0) token.id = static_cast<int32_t>(i);
          sum += exps[i];
          if (sum > target) break;
        }
      }
    }
    token.log_prob = row[token.id] * inverse - log_sum;
  }
  return out;
}

}  // namespace rlhf::model
