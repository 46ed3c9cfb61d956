#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/kernels/cpu_kernels.h"

namespace rlhf::model {
namespace {

// Philox-4x32-10 (Salmon et al., SC 2011).
struct Words {
  uint32_t v[4];
};

Words Philox(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter.v[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter.v[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.v[1] ^ key0, static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.v[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

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

double PhiloxUniform(const NoiseKey& key, uint32_t position) {
  // The stream takes part through the key's high word; counter words are step, ordinal, index and position.
  const Words words = Philox({{key.step, key.ordinal, key.index, position}}, static_cast<uint32_t>(key.seed),
                             static_cast<uint32_t>(key.seed >> 32) ^ (key.stream * 0x9E3779B9U));
  const uint64_t bits = (static_cast<uint64_t>(words.v[0]) << 21) ^ (words.v[1] >> 11);
  return (static_cast<double>(bits & ((uint64_t{1} << 53) - 1)) + 0.5) * 0x1.0p-53;
}

std::vector<SampledToken> Sample(const torch::Tensor& logits, const std::vector<SamplingParams>& params,
                                 const std::vector<NoiseKey>& keys, const std::vector<uint32_t>& positions) {
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
