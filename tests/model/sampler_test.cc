#include "model/sampler.h"

#include <cmath>
#include <map>

#include <gtest/gtest.h>

namespace rlhf::model {
namespace {

std::vector<SampledToken> Draw(const torch::Tensor& logits, const SamplingParams& params, uint32_t position,
                               uint64_t seed = 5) {
  const auto n = static_cast<size_t>(logits.size(0));
  std::vector<NoiseKey> keys(n);
  for (size_t i = 0; i < n; ++i) {
    keys[i].seed = seed;
    keys[i].index = static_cast<uint32_t>(i);
  }
  return Sample(logits, std::vector<SamplingParams>(n, params), keys, std::vector<uint32_t>(n, position));
}

TEST(SamplerTest, GreedyTakesTheLargest) {
  const auto tokens = Draw(torch::tensor({{0.1F, 2.0F, -1.0F}, {3.0F, 2.0F, 2.5F}}), {.temperature = 0}, 0);
  EXPECT_EQ(tokens[0].id, 1);
  EXPECT_EQ(tokens[1].id, 0);
  EXPECT_NEAR(tokens[0].log_prob, torch::log_softmax(torch::tensor({0.1, 2.0, -1.0}), 0)[1].item<double>(), 1e-6);
}

TEST(SamplerTest, FrequenciesFollowTheTemperedDistribution) {
  const torch::Tensor row = torch::tensor({1.0F, 0.0F, 2.0F, -1.0F});
  const int n = 20'000;
  SamplingParams params;
  params.temperature = 1.5;
  std::map<int, int> counts;
  for (const SampledToken& token : Draw(row.expand({n, 4}).contiguous(), params, 3)) {
    ++counts[token.id];
    EXPECT_NEAR(token.log_prob, torch::log_softmax(row / 1.5, 0)[token.id].item<float>(), 1e-5);
    EXPECT_EQ(token.log_kept_mass, 0);
  }
  const torch::Tensor p = torch::softmax(row / 1.5, 0);
  for (int id = 0; id < 4; ++id) {
    const double expected = p[id].item<double>();
    EXPECT_NEAR(counts[id] / static_cast<double>(n), expected, 4 * std::sqrt(expected * (1 - expected) / n));
  }
}

TEST(SamplerTest, TruncationKeepsTheHeadAndRecordsItsMass) {
  const torch::Tensor row = torch::tensor({1.0F, 0.0F, 2.0F, -1.0F});
  const torch::Tensor p = torch::softmax(row, 0);
  SamplingParams top_k;
  top_k.top_k = 2;
  for (const SampledToken& token : Draw(row.expand({500, 4}).contiguous(), top_k, 0)) {
    EXPECT_TRUE(token.id == 2 || token.id == 0);
    EXPECT_NEAR(token.log_kept_mass, std::log(p[2].item<double>() + p[0].item<double>()), 1e-5);
    // Untruncated: what the learner recomputes.
    EXPECT_NEAR(token.log_prob, std::log(p[token.id].item<double>()), 1e-5);
  }
  SamplingParams top_p;
  top_p.top_p = 0.5;  // the first token alone holds 0.64
  for (const SampledToken& token : Draw(row.expand({100, 4}).contiguous(), top_p, 0)) EXPECT_EQ(token.id, 2);
}

TEST(SamplerTest, TopPIsOfWhatTopKLeft) {
  // Of 0.64, 0.24, 0.09, 0.03 top-k leaves the first two, of which the first is 0.73.
  const torch::Tensor rows = torch::tensor({1.0F, 0.0F, 2.0F, -1.0F}).expand({200, 4}).contiguous();
  std::map<int, int> counts;
  for (const SampledToken& token : Draw(rows, {.temperature = 1, .top_p = 0.7, .top_k = 2}, 0)) ++counts[token.id];
  EXPECT_EQ(counts.size(), 1u);
  EXPECT_EQ(counts[2], 200);
  counts.clear();
  for (const SampledToken& token : Draw(rows, {.temperature = 1, .top_p = 0.75, .top_k = 2}, 0)) ++counts[token.id];
  EXPECT_EQ(counts.size(), 2u) << "the one that crosses the bound belongs to them";
}

TEST(SamplerTest, TheBoundItselfIsEnoughAndTiesAreOrderedById) {
  // Two halves and nothing else: one is exactly top_p of them.
  const torch::Tensor halves = torch::tensor({-200.0F, 0.0F, 0.0F}).expand({200, 3}).contiguous();
  for (const SampledToken& token : Draw(halves, {.temperature = 1, .top_p = 0.5}, 0)) {
    EXPECT_EQ(token.id, 1);
    EXPECT_NEAR(token.log_kept_mass, std::log(0.5), 1e-6);
  }
  const torch::Tensor level = torch::zeros({400, 5});
  std::map<int, int> counts;
  for (const SampledToken& token : Draw(level, {.temperature = 1, .top_k = 2}, 0)) ++counts[token.id];
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_GT(counts[0], 100);
  EXPECT_GT(counts[1], 100);
  // As many as there are is none left out.
  for (const SampledToken& token : Draw(level, {.temperature = 1, .top_k = 5}, 0)) EXPECT_EQ(token.log_kept_mass, 0);
}

// The running sum is in blocks; a vocabulary has many, and the last is not whole.
TEST(SamplerTest, TheTokenIsWhereTheRunningSumCrossesTheNoise) {
  torch::manual_seed(2);
  for (const int64_t width : {63, 64, 65, 200, 1000}) {
    const int64_t n = 500;
    const torch::Tensor row = torch::randn({width});
    const auto drawn = Draw(row.expand({n, width}).contiguous(), {.temperature = 0.7}, 6);
    const torch::Tensor sums = torch::softmax(row.to(torch::kFloat64) / 0.7, 0).cumsum(0).contiguous();
    const double* const cumulative = sums.data_ptr<double>();
    for (int64_t i = 0; i < n; ++i) {
      NoiseKey key;
      key.seed = 5;
      key.index = static_cast<uint32_t>(i);
      const double uniform = PhiloxUniform(key, 6);
      const auto id = static_cast<int64_t>(drawn[static_cast<size_t>(i)].id);
      ASSERT_TRUE(id >= 0 && id < width) << id;
      EXPECT_LT(uniform, cumulative[id] + 1e-5) << width << " " << i;
      EXPECT_GT(uniform, (id == 0 ? 0 : cumulative[id - 1]) - 1e-5) << width << " " << i;
    }
  }
}

// The noise is the same on every worker of every release: Random123's known answers for philox4x32-10, whose first two
// words make the uniform.
TEST(SamplerTest, NoiseIsPhiloxOfTheWholeKey) {
  const auto uniform = [](uint32_t first, uint32_t second) {
    const uint64_t bits = (static_cast<uint64_t>(first) << 21) ^ (second >> 11);
    return (static_cast<double>(bits & ((uint64_t{1} << 53) - 1)) + 0.5) * 0x1.0p-53;
  };
  EXPECT_EQ(PhiloxUniform({}, 0), uniform(0x6627e8d5, 0xe169c58d));
  NoiseKey ones;
  ones.seed = ~uint64_t{0};
  ones.step = ones.ordinal = ones.index = 0xffffffff;
  EXPECT_EQ(PhiloxUniform(ones, 0xffffffff), uniform(0x408f276d, 0x41c83b0e));
  NoiseKey pi;
  pi.seed = 0x299f31d0a4093822;
  pi.step = 0x243f6a88;
  pi.ordinal = 0x85a308d3;
  pi.index = 0x13198a2e;
  EXPECT_EQ(PhiloxUniform(pi, 0x03707344), uniform(0xd16cfe09, 0x94fdcceb));
  // A stream is another high half of the key.
  pi.stream = 1;
  EXPECT_NE(PhiloxUniform(pi, 0x03707344), uniform(0xd16cfe09, 0x94fdcceb));
  pi.seed ^= uint64_t{0x9E3779B9} << 32;
  EXPECT_EQ(PhiloxUniform(pi, 0x03707344), uniform(0xd16cfe09, 0x94fdcceb));
}

TEST(SamplerTest, NoiseDependsOnTheKeyAlone) {
  torch::manual_seed(1);
  const torch::Tensor logits = torch::randn({8, 50});
  SamplingParams params;
  NoiseKey key;
  key.seed = 9;
  key.step = 4;
  key.ordinal = 2;
  const auto alone = Sample(logits.narrow(0, 3, 1).contiguous(), {params}, {key}, {17});
  std::vector<NoiseKey> keys(8);
  for (uint32_t i = 0; i < 8; ++i) keys[i].ordinal = 100 + i;
  keys[3] = key;
  const auto together = Sample(logits, std::vector<SamplingParams>(8, params), keys, std::vector<uint32_t>(8, 17));
  EXPECT_EQ(alone[0].id, together[3].id);
  EXPECT_EQ(PhiloxUniform(key, 17), PhiloxUniform(key, 17));
  EXPECT_NE(PhiloxUniform(key, 17), PhiloxUniform(key, 18));
  key.index = 1;
  EXPECT_NE(PhiloxUniform(keys[3], 17), PhiloxUniform(key, 17));
}

TEST(SamplerTest, UniformsAreUniform) {
  double sum = 0, squares = 0;
  const int n = 10'000;
  for (int i = 0; i < n; ++i) {
    NoiseKey key;
    key.ordinal = static_cast<uint32_t>(i);
    const double u = PhiloxUniform(key, 0);
    ASSERT_GT(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
    squares += u * u;
  }
  EXPECT_NEAR(sum / n, 0.5, 0.02);
  EXPECT_NEAR(squares / n, 1.0 / 3, 0.02);
}

}  // namespace
}  // namespace rlhf::model
