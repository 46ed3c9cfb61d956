// Attention by the kernels against its formula in float64 by LibTorch: heads as wide as real models', sequences longer
// than what is computed together, in float32 and bfloat16.
#include "model/attention.h"

#include <limits>

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace rlhf::model {
namespace {

using kernels::AttentionShape;

constexpr int64_t kHeads = 4, kKvHeads = 2;

AttentionShape ShapeOf(int64_t dim, int64_t window, float softcap) {
  AttentionShape shape;
  shape.heads = kHeads;
  shape.kv_heads = kKvHeads;
  shape.dim = dim;
  shape.scale = 0.3F;
  shape.window = window;
  shape.softcap = softcap;
  return shape;
}

// qkv [T, heads + 2 · kv_heads, dim] in float64 -> [T, heads · dim].
torch::Tensor Formula(const AttentionShape& shape, const torch::Tensor& qkv, const std::vector<int64_t>& lengths) {
  std::vector<torch::Tensor> out;
  int64_t begin = 0;
  for (const int64_t length : lengths) {
    const torch::Tensor rows = qkv.narrow(0, begin, length).transpose(0, 1);
    begin += length;
    const auto repeated = [&](int64_t first) {
      return rows.narrow(0, first, kKvHeads).repeat_interleave(kHeads / kKvHeads, 0);
    };
    torch::Tensor scores = torch::matmul(rows.narrow(0, 0, kHeads), repeated(kHeads).transpose(1, 2)) * shape.scale;
    if (shape.softcap > 0) scores = shape.softcap * torch::tanh(scores / shape.softcap);
    torch::Tensor seen = torch::ones({length, length}, torch::kBool).tril();
    if (shape.window > 0) seen = seen.triu(1 - shape.window);
    scores = scores.masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity());
    out.push_back(torch::matmul(torch::softmax(scores, -1), repeated(kHeads + kKvHeads)).transpose(0, 1));
  }
  return torch::cat(out).reshape({begin, kHeads * shape.dim});
}

// The outcome, and the gradient of its sum weighed by `upstream`.
std::pair<torch::Tensor, torch::Tensor> WithGradient(const torch::Tensor& qkv, const torch::Tensor& upstream,
                                                     const std::function<torch::Tensor(const torch::Tensor&)>& fn) {
  const torch::Tensor leaf = qkv.detach().clone().requires_grad_(true);
  const torch::Tensor out = fn(leaf);
  (out * upstream).sum().backward();
  return {out.detach(), leaf.grad()};
}

void ExpectNear(const torch::Tensor& found, const torch::Tensor& expected, double bound, const std::string& what) {
  const torch::Tensor apart = (found.to(torch::kFloat64) - expected).abs();
  EXPECT_LE(apart.max().item<double>(), bound * std::max(1.0, expected.abs().max().item<double>())) << what;
}

TEST(AttentionTest, EqualsItsFormulaForLongSequencesAndWideHeads) {
  const std::vector<int64_t> lengths{57, 1, 300, 150};
  for (const int64_t dim : {48, 64, 80, 112}) {
    for (const int64_t window : {0, 40}) {
      for (const float softcap : {0.0F, 5.0F}) {
        const AttentionShape shape = ShapeOf(dim, window, softcap);
        torch::manual_seed(dim);
        for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
          const std::string what = absl::StrCat("dim ", dim, " window ", window, " cap ", softcap, " ", toString(type));
          const torch::Tensor qkv = torch::randn({508, kHeads + 2 * kKvHeads, dim}).to(type),
                              upstream = torch::randn({508, kHeads * dim}).to(type);
          const PackedLayout layout = PackedLayout::Of(lengths, torch::kCPU);
          const auto [out, grad] = WithGradient(qkv, upstream, [&](const torch::Tensor& x) {
            return AttendPacked(shape, x, layout, /*fixed_order=*/true);
          });
          const auto [expected, slope] =
              WithGradient(qkv.to(torch::kFloat64), upstream.to(torch::kFloat64),
                           [&](const torch::Tensor& x) { return Formula(shape, x, lengths); });
          EXPECT_EQ(out.scalar_type(), type);
          const double bound = type == torch::kFloat32 ? 2e-6 : 1e-2;
          ExpectNear(out, expected, bound, what);
          ExpectNear(grad, slope, 2 * bound, what + ": gradient");
        }
      }
    }
  }
}

// Heads and the queries of long sequences are divided over threads; a prompt that is read in parts is that of one.
TEST(AttentionTest, NeitherThreadsNorPartsChangeABit) {
  const int threads = at::get_num_threads();
  for (const int64_t window : {0, 40}) {
    const AttentionShape shape = ShapeOf(48, window, 0);
    torch::manual_seed(1);
    const torch::Tensor qkv = torch::randn({700, kHeads + 2 * kKvHeads, 48}), upstream = torch::randn({700, 192});
    const PackedLayout layout = PackedLayout::Of({700}, torch::kCPU);
    const auto run = [&](int with) {
      at::set_num_threads(with);
      return WithGradient(qkv, upstream,
                          [&](const torch::Tensor& x) { return AttendPacked(shape, x, layout, /*fixed_order=*/true); });
    };
    const auto [out, grad] = run(1);
    const auto [same_out, same_grad] = run(4);
    EXPECT_TRUE(torch::equal(out, same_out) && torch::equal(grad, same_grad)) << "window " << window;
    // In parts, as a cache is filled: [kv_heads, length, dim], which has room for more.
    const torch::Tensor keys = torch::zeros({kKvHeads, 800, 48}), values = torch::zeros({kKvHeads, 800, 48});
    keys.narrow(1, 0, 700).copy_(qkv.narrow(1, kHeads, kKvHeads).transpose(0, 1));
    values.narrow(1, 0, 700).copy_(qkv.narrow(1, kHeads + kKvHeads, kKvHeads).transpose(0, 1));
    for (int64_t begin = 0; begin < 700;) {
      const int64_t count = begin == 0 ? 301 : 399, end = begin + count;
      const torch::Tensor part = AttendCached(shape, qkv.narrow(0, begin, count).narrow(1, 0, kHeads),
                                              keys.narrow(1, 0, end), values.narrow(1, 0, end), /*fixed_order=*/true);
      EXPECT_TRUE(torch::equal(part, out.narrow(0, begin, count))) << begin << " window " << window;
      begin = end;
    }
  }
  at::set_num_threads(threads);
}

// What is not a number in one sequence stays there.
TEST(AttentionTest, SequencesDoNotMixWhatIsNotANumber) {
  const AttentionShape shape = ShapeOf(48, 0, 0);
  torch::manual_seed(2);
  torch::Tensor qkv = torch::randn({90, kHeads + 2 * kKvHeads, 48});
  const PackedLayout layout = PackedLayout::Of({40, 50}, torch::kCPU);
  const auto whole = AttendPacked(shape, qkv, layout, /*fixed_order=*/true);
  qkv.narrow(0, 0, 40).fill_(std::numeric_limits<float>::quiet_NaN());
  const auto found = AttendPacked(shape, qkv, layout, /*fixed_order=*/true);
  EXPECT_TRUE(torch::equal(found.narrow(0, 40, 50), whole.narrow(0, 40, 50)));
  EXPECT_TRUE(found.narrow(0, 0, 40).isnan().all().item<bool>());
}

TEST(KernelConversionsTest, Bfloat16IsLibTorchs) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  std::vector<float> numbers{0.0F, -0.0F,   1.0F,     nan,    -nan,        inf,
                             -inf, 3.4e38F, -3.4e38F, 1e-40F, 1.00390625F, 1.01171875F};
  torch::manual_seed(3);
  const torch::Tensor random = torch::randn({37}) * 100;
  numbers.insert(numbers.end(), random.data_ptr<float>(), random.data_ptr<float>() + 37);
  for (size_t count = 1; count <= numbers.size(); ++count) {
    std::vector<uint16_t> narrow(count + 1, 0x1234);
    kernels::Narrow(numbers.data(), static_cast<int64_t>(count), narrow.data());
    std::vector<float> wide(count + 1, 5);
    kernels::Widen(narrow.data(), static_cast<int64_t>(count), wide.data());
    for (size_t i = 0; i < count; ++i) {
      const at::BFloat16 expected(numbers[i]);
      if (std::isnan(numbers[i])) {
        EXPECT_TRUE(std::isnan(wide[i]));
        continue;
      }
      ASSERT_EQ(narrow[i], expected.x) << numbers[i];
      ASSERT_EQ(wide[i], static_cast<float>(expected));
    }
    ASSERT_EQ(narrow[count], 0x1234) << "beyond the end";
    ASSERT_EQ(wide[count], 5) << "beyond the end";
  }
}

}  // namespace
}  // namespace rlhf::model
