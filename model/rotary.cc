#include "model/rotary.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include <c10/core/InferenceMode.h>

namespace rlhf::model {
namespace {

using Kind = artifact::Rope::Kind;

constexpr int64_t kFirstTable = 4096;  // positions; more are made when they are asked for

// theta^(2i/dim) in float32, by PyTorch's own power: its rounding is the reference's.
std::vector<float> Powers(double theta, int64_t dim) {
  const torch::Tensor exponents =
      torch::arange(0, dim, 2, torch::kInt64).to(torch::kFloat32) / static_cast<double>(dim);
  const torch::Tensor powers = torch::pow(theta, exponents).contiguous();
  return {powers.data_ptr<float>(), powers.data_ptr<float>() + powers.numel()};
}

// Dimensions below `low` keep their frequency, above `high` are interpolated, between them mixed (Peng et al. 2023).
std::vector<float> Yarn(const artifact::Rope& rope, int64_t dim, const std::vector<float>& powers) {
  const auto d = static_cast<double>(dim);
  const auto correction = [&](double rotations) {
    return d * std::log(static_cast<double>(rope.original_positions) / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(rope.theta));
  };
  double low = correction(rope.beta_fast), high = correction(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, d - 1);
  if (low == high) high += 0.001;
  std::vector<float> out;
  for (size_t i = 0; i < powers.size(); ++i) {
    const float ramp =
        std::clamp((static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0F, 1.0F);
    const float keep = 1 - ramp;
    const float interpolated = 1 / (static_cast<float>(rope.factor) * powers[i]);
    out.push_back(interpolated * (1 - keep) + 1 / powers[i] * keep);
  }
  return out;
}

// Long waves are stretched, short ones kept, those between mixed (Llama 3.1).
float Llama3(const artifact::Rope& rope, float frequency) {
  const auto trained = static_cast<float>(rope.original_positions);
  const auto low = static_cast<float>(rope.low_freq_factor), high = static_cast<float>(rope.high_freq_factor),
             factor = static_cast<float>(rope.factor);
  const float wave = 2 * std::numbers::pi_v<float> / frequency;
  if (wave > trained / low) return frequency / factor;
  if (wave < trained / high) return frequency;
  const float smooth = (trained / wave - low) / (high - low);
  return (1 - smooth) * frequency / factor + smooth * frequency;
}

}  // namespace

RotaryRows Gathered(const RotaryRows& rows, torch::Dtype dtype) {
  RotaryRows out = rows;
  out.token_cos = rows.cos.index_select(0, rows.index).unsqueeze(1).to(dtype);
  out.token_sin = rows.sin.index_select(0, rows.index).unsqueeze(1).to(dtype);
  return out;
}

Rotary::Rotary(const artifact::Rope& rope, int64_t dim, int64_t context, torch::Device device)
    : rope_(rope), dim_(dim), context_(context), device_(device) {
  Grow(std::min(context, kFirstTable));
}

int64_t Rotary::Reach() const {
  if (rope_.kind == Kind::kDynamic) return context_;
  if (rope_.kind == Kind::kLongRope) return rope_.original_positions;
  return std::numeric_limits<int64_t>::max();
}

std::vector<float> Rotary::Frequencies(int64_t length) const {
  double theta = rope_.theta;
  if (rope_.kind == Kind::kDynamic && length > context_) {
    const double stretch =
        rope_.factor * static_cast<double>(length) / static_cast<double>(context_) - (rope_.factor - 1);
    theta *= std::pow(stretch, static_cast<double>(dim_) / static_cast<double>(dim_ - 2));
  }
  std::vector<float> powers = Powers(theta, dim_);
  if (rope_.kind == Kind::kYarn) return Yarn(rope_, dim_, powers);
  for (size_t i = 0; i < powers.size(); ++i) {
    if (rope_.kind == Kind::kLongRope)
      powers[i] *= static_cast<float>((length > Reach() ? rope_.long_factor : rope_.short_factor)[i]);
    powers[i] = 1 / powers[i];
    if (rope_.kind == Kind::kLinear) powers[i] /= static_cast<float>(rope_.factor);
    if (rope_.kind == Kind::kLlama3) powers[i] = Llama3(rope_, powers[i]);
  }
  return powers;
}

void Rotary::Fill(const std::vector<float>& frequencies, int64_t positions, torch::Tensor* cos,
                  torch::Tensor* sin) const {
  // The tables outlive the caller's mode: training saves them for its backward pass.
  const c10::InferenceMode no_inference(false);
  const torch::NoGradGuard no_grad;
  const torch::Tensor turn =
      torch::outer(torch::arange(positions, torch::kInt64).to(torch::kFloat32), torch::tensor(frequencies));
  *cos = (turn.cos() * rope_.attention_factor).contiguous().to(device_);
  *sin = (turn.sin() * rope_.attention_factor).contiguous().to(device_);
}

void Rotary::Grow(int64_t positions) {
  if (cos_.defined() && positions <= cos_.size(0)) return;
  const int64_t now = cos_.defined() ? cos_.size(0) : 0;
  Fill(Frequencies(0), std::max(positions, 2 * now), &cos_, &sin_);
}

RotaryRows Rotary::ForSequences(const torch::Tensor& positions, const std::vector<int64_t>& lengths) {
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  if (longest <= Reach()) {
    Grow(longest);
    return {cos_, sin_, positions};
  }
  // One row a token.
  std::vector<torch::Tensor> cos, sin;
  for (const int64_t length : lengths) {
    torch::Tensor c, s;
    Fill(Frequencies(length), length, &c, &s);
    cos.push_back(c);
    sin.push_back(s);
  }
  return {torch::cat(cos), torch::cat(sin),
          torch::arange(positions.size(0), torch::TensorOptions().dtype(torch::kInt64).device(device_))};
}

RotaryRows Rotary::ForCache(const torch::Tensor& positions, int64_t end) {
  TORCH_CHECK(end <= Reach(), "a sequence of ", end, " tokens is longer than the ", Reach(),
              " for which this model's rotary positions are fixed; generate at most so many");
  Grow(end);
  return {cos_, sin_, positions};
}

}  // namespace rlhf::model
