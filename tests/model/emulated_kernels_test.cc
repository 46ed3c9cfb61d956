// The CUDA kernels as they are, run by the host (tests/testing/cuda_emulation.h), against the CPU's.
#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "model/kernels/cpu_kernels.h"
#include "model/kernels/cuda_kernels.h"
#include "tests/testing/cuda_emulation.h"

namespace rlhf::model::kernels {
namespace {

template <class T>
T Rounded(float value) {
  return value;
}
template <>
__nv_bfloat16 Rounded<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

class EmulatedKernelsTest : public testing::Test {
 protected:
  template <class T>
  std::vector<T> Random(int64_t count) {
    std::vector<T> out(static_cast<size_t>(count));
    for (T& number : out) number = Rounded<T>(normal_(random_));
    return out;
  }

  // Appends and attends; keys that are appended must be there, others as they were.
  template <class T>
  void ExpectDecoding(const AttentionShape& shape, int64_t splits) {
    const std::vector<int64_t> lengths = {1, 150, 17, 0, 64};  // one stands for nothing
    const auto count = static_cast<int64_t>(lengths.size());
    const int64_t row = (shape.heads + 2 * shape.kv_heads) * shape.dim;
    std::vector<int64_t> rows, begins, rooms;
    int64_t positions = 0;
    for (int64_t b = 0; b < count; ++b) {
      rows.push_back(count - 1 - b);  // in another order than the sequences'
      begins.push_back(positions * shape.kv_heads * shape.dim);
      rooms.push_back(lengths[static_cast<size_t>(b)] + 3);
      positions += rooms.back();
    }
    const std::vector<T> qkv = Random<T>(count * row);
    std::vector<T> keys = Random<T>(positions * shape.kv_heads * shape.dim),
                   values = Random<T>(positions * shape.kv_heads * shape.dim);
    std::vector<float> plain_keys(keys.begin(), keys.end()), plain_values(values.begin(), values.end());
    std::vector<float> expected(static_cast<size_t>(count * shape.heads * shape.dim), 0);
    for (size_t b = 0; b < lengths.size(); ++b) {
      if (lengths[b] == 0) continue;
      const std::vector<float> own(qkv.begin() + rows[b] * row, qkv.begin() + (rows[b] + 1) * row);
      for (int64_t h = 0; h < shape.kv_heads; ++h) {
        const int64_t target = begins[b] + (h * rooms[b] + lengths[b] - 1) * shape.dim;
        std::copy_n(own.begin() + (shape.heads + h) * shape.dim, shape.dim, plain_keys.begin() + target);
        std::copy_n(own.begin() + (shape.heads + shape.kv_heads + h) * shape.dim, shape.dim,
                    plain_values.begin() + target);
      }
      std::vector<float> scratch(static_cast<size_t>(kernels::RoundUpTo16(lengths[b])));
      const kernels::CachedQuery query{own.data(), begins[b], rooms[b], lengths[b],
                                       &expected[static_cast<size_t>(rows[b] * shape.heads * shape.dim)]};
      kernels::DecodeAttention(shape, &query, 1, plain_keys.data(), plain_values.data(), scratch.data());
    }
    const cuda::DecodePlaces places{rows.data(), begins.data(), rooms.data(), lengths.data(), count};
    const auto element = sizeof(T) == sizeof(float) ? cuda::Element::kFloat32 : cuda::Element::kBfloat16;
    std::vector<T> out(expected.size(), Rounded<T>(7));
    std::vector<float> scratch(static_cast<size_t>(cuda::DecodeScratch(shape, count, splits)), NAN);
    ASSERT_EQ(cuda::AppendKeys(shape, element, qkv.data(), places, keys.data(), values.data(), nullptr), 0);
    ASSERT_EQ(cuda::DecodeAttention(shape, element, qkv.data(), keys.data(), values.data(), places, splits,
                                    scratch.data(), out.data(), nullptr),
              0);
    EXPECT_TRUE(std::equal(keys.begin(), keys.end(), plain_keys.begin(), plain_keys.end()));
    EXPECT_TRUE(std::equal(values.begin(), values.end(), plain_values.begin(), plain_values.end()));
    // bfloat16 is rounded once, at the end: half of 2⁻⁷ of what is below 4.
    const double bound = sizeof(T) == sizeof(float) ? 1e-5 : 1.6e-2;
    for (size_t i = 0; i < expected.size(); ++i)
      ASSERT_NEAR(static_cast<float>(out[i]), expected[i], bound) << "number " << i << ", dim " << shape.dim;
  }

  std::mt19937 random_{3};
  std::normal_distribution<float> normal_;
};

AttentionShape Shape(int64_t heads, int64_t kv_heads, int64_t dim, int64_t window = 0, float softcap = 0) {
  return {.heads = heads, .kv_heads = kv_heads, .dim = dim, .scale = 0.3F, .softcap = softcap, .window = window};
}

TEST_F(EmulatedKernelsTest, Float32DecodingIsTheCpus) {
  ExpectDecoding<float>(Shape(2, 2, 16), 1);
  ExpectDecoding<float>(Shape(4, 2, 64), 3);
  ExpectDecoding<float>(Shape(7, 1, 80, 50, 10), 2);
  ExpectDecoding<float>(Shape(4, 2, 128), 7);
  ExpectDecoding<float>(Shape(2, 2, 200, 0, 5), 16);
  ExpectDecoding<float>(Shape(1, 1, 256), 2);
}

// A prompt's tokens are appended at once: each has its place, of its own length.
TEST_F(EmulatedKernelsTest, TokensOfAPromptAreAppendedTogether) {
  const AttentionShape shape = Shape(4, 2, 24);
  constexpr int64_t kTokens = 7, kRoom = 12, kCached = 3, kBegin = 48, kRow = (4 + 2 * 2) * 24;
  const std::vector<float> qkv = Random<float>((kTokens + 1) * kRow);
  std::vector<float> keys(kBegin + 2 * kRoom * 24, -1), values = keys;
  std::vector<int64_t> rows, begins(kTokens, kBegin), rooms(kTokens, kRoom), lengths;
  for (int64_t t = 0; t < kTokens; ++t) {
    rows.push_back(t + 1);
    lengths.push_back(kCached + t + 1);
  }
  const cuda::DecodePlaces places{rows.data(), begins.data(), rooms.data(), lengths.data(), kTokens};
  ASSERT_EQ(cuda::AppendKeys(shape, cuda::Element::kFloat32, qkv.data(), places, keys.data(), values.data(), nullptr),
            0);
  std::vector<float> expected_keys(keys.size(), -1), expected_values = expected_keys;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t h = 0; h < 2; ++h) {
      const int64_t to = kBegin + (h * kRoom + kCached + t) * 24;
      std::copy_n(qkv.begin() + (t + 1) * kRow + (4 + h) * 24, 24, expected_keys.begin() + to);
      std::copy_n(qkv.begin() + (t + 1) * kRow + (6 + h) * 24, 24, expected_values.begin() + to);
    }
  }
  EXPECT_EQ(keys, expected_keys);
  EXPECT_EQ(values, expected_values);
}

TEST_F(EmulatedKernelsTest, Bfloat16DecodingIsTheCpus) {
  ExpectDecoding<__nv_bfloat16>(Shape(3, 3, 64), 1);
  ExpectDecoding<__nv_bfloat16>(Shape(6, 1, 128), 4);
  ExpectDecoding<__nv_bfloat16>(Shape(9, 1, 256, 20), 5);
  ExpectDecoding<__nv_bfloat16>(Shape(2, 1, 24), 2);
}

// Beside the smallest blocks that hold it, a group takes what is left of them, and blocks more than one.
TEST_F(EmulatedKernelsTest, EveryGroupOfQueryHeadsReadsItsOwnKeys) {
  for (const int64_t group : {1, 2, 3, 4, 5, 7, 8, 9, 12, 17}) {
    SCOPED_TRACE(group);
    const AttentionShape whole = Shape(2 * group, 2, 64), cut = Shape(2 * group, 2, 24, 40, 5);
    const int64_t together = cuda::DecodeHeads(whole);
    EXPECT_EQ(together, group == 1 ? 1 : group == 2 ? 2 : group <= 4 ? 4 : 8);
    if (group <= 4) ExpectDecoding<__nv_bfloat16>(whole, 2);
    ExpectDecoding<float>(cut, 1);
  }
  ExpectDecoding<__nv_bfloat16>(Shape(4, 2, 128, 30), 3);
  ExpectDecoding<__nv_bfloat16>(Shape(4, 2, 256), 2);
  ExpectDecoding<float>(Shape(4, 2, 200), 4);
}

TEST_F(EmulatedKernelsTest, ManySequencesNeedNoParts) {
  EXPECT_EQ(cuda::DecodeSplits(Shape(32, 8, 128), 256, 132), 1);
  EXPECT_GT(cuda::DecodeSplits(Shape(32, 8, 128), 1, 132), 16);
  EXPECT_EQ(cuda::DecodeScratch(Shape(32, 8, 128), 256, 1), 0);
}

// One thread of the host as a group: what shared_kernels_test.cc holds against the sampler.
struct Alone {
  int64_t rank() const { return 0; }
  int64_t size() const { return 1; }
  double Sum(double value) { return value; }
  void SumThree(double*) {}
  float Max(float value) { return value; }
  int32_t Min(int32_t value) { return value; }
  double Before(double) { return 0; }
};

TEST_F(EmulatedKernelsTest, ABlockSamplesWhatOneThreadDoes) {
  constexpr int64_t kWidth = 1500, kRows = 5;
  std::vector<float> logits = Random<float>(kRows * kWidth);
  for (float& logit : logits) logit *= 3;
  for (int64_t i = 0; i < kWidth; i += 7) logits[static_cast<size_t>(3 * kWidth + i)] = 12;  // ties
  std::vector<SampleRequest> requests(kRows);
  for (size_t i = 0; i < kRows; ++i) {
    requests[i].noise.words[1] = static_cast<uint32_t>(i);
    requests[i].noise.key[0] = 77;
    requests[i].inverse_temperature = i % 2 == 0 ? 1.0F : 1.3F;
  }
  requests[1].top_k = 20;
  requests[2].top_p = 0.8;
  requests[3].top_k = 100;
  requests[3].top_p = 0.5;
  requests[4].greedy = 1;
  std::vector<float> exps(logits.size()), own(kWidth);
  std::vector<SampledRow> tokens(kRows);
  ASSERT_EQ(cuda::SampleRows(logits.data(), kRows, kWidth, requests.data(), exps.data(), tokens.data(), nullptr), 0);
  for (size_t i = 0; i < kRows; ++i) {
    Alone alone;
    const SampledRow expected =
        SampleRow(alone, logits.data() + i * static_cast<size_t>(kWidth), kWidth, requests[i], own.data());
    EXPECT_EQ(tokens[i].id, expected.id) << "row " << i;
    EXPECT_NEAR(tokens[i].log_prob, expected.log_prob, 1e-5) << "row " << i;
    EXPECT_NEAR(tokens[i].log_kept_mass, expected.log_kept_mass, 1e-5) << "row " << i;
  }
}

}  // namespace
}  // namespace rlhf::model::kernels
