// Draws the next token from logits with counter-based noise.
//
// The noise of a token is Philox-4x32-10 keyed by (seed, stream) with counter (step, ordinal, index, position): it
// depends on neither worker, batch nor order. One uniform a token, inverse CDF over the kept tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "model/kernels/philox.h"
#include "model/libtorch.h"

namespace rlhf::model {

struct SamplingParams {
  double temperature = 1.0;  // 0: greedy
  double top_p = 1.0;        // (0, 1]
  int top_k = 0;             // 0: off
};

struct NoiseKey {
  uint64_t seed = 0;    // the job's
  uint32_t stream = 0;  // stage and round
  uint32_t step = 0, ordinal = 0, index = 0;
};

struct SampledToken {
  int32_t id = 0;  // below 0, or with a log_prob that is not finite: of logits that are not
  float log_prob =
      0;  // of softmax(logits / temperature) over the whole vocabulary (greedy: temperature 1), natural log
  float log_kept_mass = 0;  // log of the probability mass kept by top-p and top-k; 0 when both are off
};

kernels::PhiloxCounter NoiseOf(const NoiseKey& key, uint32_t position);
// Uniform in (0, 1) for a position.
double PhiloxUniform(const NoiseKey& key, uint32_t position);

// logits [B, vocab], any float dtype; params, keys and positions have B entries. Logits on a CUDA device are drawn from
// there (device_ops.h): the same token for the same logits, up to rounding, and the host waits once.
std::vector<SampledToken> Sample(const torch::Tensor& logits, const std::vector<SamplingParams>& params,
                                 const std::vector<NoiseKey>& keys, const std::vector<uint32_t>& positions);

}  // namespace rlhf::model
