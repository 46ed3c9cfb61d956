// The kernels against plain loops in double precision, and their promise: a row's bytes depend on that row alone.
#include "model/kernels/cpu_kernels.h"

#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "model/kernels/table.h"

namespace rlhf::model::kernels {
namespace {

std::vector<float> Random(size_t n, uint32_t seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> out(n);
  for (float& value : out) value = normal(generator);
  return out;
}

// a [rows, inner] · bᵀ, b [columns, inner], each stored so or the other way; added to ones.
std::vector<float> ProductOf(const std::vector<float>& a, bool a_across, const std::vector<float>& b, bool b_across,
                             const std::vector<float>& bias, int64_t rows, int64_t columns, int64_t inner) {
  const auto stored = [inner](const std::vector<float>& in, bool across, int64_t outer) {
    std::vector<float> out(in);
    for (int64_t i = 0; across && i < outer; ++i) {
      for (int64_t k = 0; k < inner; ++k)
        out[static_cast<size_t>(k * outer + i)] = in[static_cast<size_t>(i * inner + k)];
    }
    return out;
  };
  const std::vector<float> left = stored(a, a_across, rows), right = stored(b, b_across, columns);
  std::vector<float> packed(static_cast<size_t>(PackedSize(columns, inner)), NAN),
      c(static_cast<size_t>(rows * columns), 1);
  PackPanels(right.data(), b_across ? 1 : inner, b_across ? columns : 1, columns, inner, packed.data());
  Product(left.data(), a_across ? 1 : inner, a_across ? rows : 1, packed.data(), bias.empty() ? nullptr : bias.data(),
          rows, columns, inner, c.data(), columns, true);
  return c;
}

TEST(KernelsTest, ProductEqualsDoublesForEveryShape) {
  for (const int64_t inner : {1, 15, 16, 48, 130, 1100}) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 29}) {
      for (const int64_t columns : {1, 15, 32, 37, 64, 131}) {
        const auto a = Random(static_cast<size_t>(rows * inner), 1),
                   b = Random(static_cast<size_t>(columns * inner), 2), bias = Random(static_cast<size_t>(columns), 3);
        const auto c = ProductOf(a, false, b, false, bias, rows, columns, inner);
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < columns; ++j) {
            double expected = 1.0 + bias[static_cast<size_t>(j)], size = 1.0 + std::abs(bias[static_cast<size_t>(j)]);
            for (int64_t k = 0; k < inner; ++k) {
              const double term =
                  static_cast<double>(a[static_cast<size_t>(i * inner + k)]) * b[static_cast<size_t>(j * inner + k)];
              expected += term;
              size += std::abs(term);
            }
            ASSERT_NEAR(c[static_cast<size_t>(i * columns + j)], expected, 1e-6 * size)
                << inner << " " << rows << " " << columns;
          }
        }
        for (const bool a_across : {false, true}) {
          for (const bool b_across : {false, true})
            ASSERT_EQ(c, ProductOf(a, a_across, b, b_across, bias, rows, columns, inner)) << a_across << b_across;
        }
      }
    }
  }
}

TEST(KernelsTest, ARowsProductDoesNotDependOnItsNeighbours) {
  const int64_t inner = 777, columns = 150, rows = 33;
  const auto a = Random(static_cast<size_t>(rows * inner), 4), b = Random(static_cast<size_t>(columns * inner), 5);
  const auto all = ProductOf(a, false, b, false, {}, rows, columns, inner);
  for (int64_t begin = 0; begin < rows; begin += 5) {
    for (const int64_t count : {1, 3, 5, 16}) {
      if (begin + count > rows) continue;
      for (const int64_t width : {int64_t{1}, int64_t{7}, int64_t{33}, columns}) {
        const auto some = ProductOf({a.begin() + begin * inner, a.begin() + (begin + count) * inner}, false,
                                    {b.begin(), b.begin() + width * inner}, false, {}, count, width, inner);
        for (int64_t i = 0; i < count; ++i) {
          for (int64_t j = 0; j < width; ++j)
            ASSERT_EQ(some[static_cast<size_t>(i * width + j)], all[static_cast<size_t>((begin + i) * columns + j)]);
        }
      }
    }
  }
}

TEST(KernelsTest, ElementaryFunctionsAreAccurate) {
  std::vector<float> x;
  for (float value = -12; value <= 12; value += 0.00371F) x.push_back(value);
  const auto n = static_cast<int64_t>(x.size());
  std::vector<float> y(x.size());
  const auto check = [&](Unary kind, double (*expected)(double)) {
    Activate(kind, x.data(), nullptr, 1, n, n, y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = expected(x[i]);
      ASSERT_NEAR(y[i], want, 1e-6 * std::max(1.0, std::abs(want))) << x[i];
    }
    std::vector<float> ones(x.size(), 1), slope(x.size());
    ActivateBackward(kind, ones.data(), x.data(), nullptr, 1, n, n, slope.data(), nullptr);
    for (size_t i = 0; i < x.size(); ++i) {
      const double h = 1e-5, want = (expected(x[i] + h) - expected(x[i] - h)) / (2 * h);
      ASSERT_NEAR(slope[i], want, 2e-6) << x[i];
    }
  };
  check(Unary::kSilu, [](double v) { return v / (1 + std::exp(-v)); });
  check(Unary::kGelu, [](double v) { return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0))); });
  check(Unary::kGeluTanh,
        [](double v) { return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v))); });
  y = x;
  Softcap(y.data(), n, 3);
  for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(y[i], 3 * std::tanh(x[i] / 3.0), 1e-6);
}

TEST(KernelsTest, LogSumExpAndEntropyAreThoseOfTheDistribution) {
  for (const int64_t width : {1, 16, 50, 257}) {
    const auto row = Random(static_cast<size_t>(width), 6, 4);
    double sum = 0, entropy = 0;
    for (const float value : row) sum += std::exp(value * 0.5);
    for (const float value : row) entropy -= std::exp(value * 0.5) / sum * (value * 0.5 - std::log(sum));
    std::vector<float> exps(row.size());
    float highest = 0;
    const float found = LogSumExp(row.data(), width, 0.5F, exps.data(), &highest);
    EXPECT_NEAR(found, std::log(sum), 2e-6);
    EXPECT_EQ(found, LogSumExp(row.data(), width, 0.5F, nullptr, nullptr));
    EXPECT_NEAR(exps[0], std::exp(row[0] * 0.5 - highest), 1e-6);
    EXPECT_NEAR(Entropy(row.data(), width, 0.5F, found), entropy, 1e-5);
  }
  const std::vector<float> certain{0, -INFINITY, -INFINITY};
  EXPECT_EQ(LogSumExp(certain.data(), 3, 1, nullptr, nullptr), 0);
  EXPECT_EQ(Entropy(certain.data(), 3, 1, 0), 0);
}

// Windows, caps, grouped queries, odd head sizes: the outcome and its gradient.
TEST(KernelsTest, AttentionEqualsItsFormula) {
  const int64_t length = 37;
  for (const int64_t dim : {6, 16, 24}) {
    for (const int64_t window : {0, 5}) {
      for (const float cap : {0.0F, 2.0F}) {
        AttentionShape shape;
        shape.heads = 4;
        shape.kv_heads = 2;
        shape.dim = dim;
        shape.scale = 0.4F;
        shape.softcap = cap;
        shape.window = window;
        const int64_t row = (shape.heads + 2 * shape.kv_heads) * dim, width = shape.heads * dim;
        const auto qkv = Random(static_cast<size_t>(length * row), 7);
        const auto upstream = Random(static_cast<size_t>(length * width), 8);
        const auto forward = [&](const std::vector<double>& x) {
          std::vector<double> out(static_cast<size_t>(length * width), 0);
          for (int64_t h = 0; h < shape.heads; ++h) {
            for (int64_t t = 0; t < length; ++t) {
              const int64_t first = window > 0 ? std::max<int64_t>(0, t + 1 - window) : 0;
              const int64_t key = (shape.heads + h / 2) * dim, value = key + shape.kv_heads * dim;
              std::vector<double> p;
              double sum = 0;
              for (int64_t j = first; j <= t; ++j) {
                double score = 0;
                for (int64_t i = 0; i < dim; ++i) score += x[t * row + h * dim + i] * x[j * row + key + i];
                score *= shape.scale;
                if (cap > 0) score = cap * std::tanh(score / cap);
                p.push_back(std::exp(score));
                sum += p.back();
              }
              for (int64_t j = first; j <= t; ++j) {
                for (int64_t i = 0; i < dim; ++i)
                  out[t * width + h * dim + i] += p[j - first] / sum * x[j * row + value + i];
              }
            }
          }
          return out;
        };
        const int64_t padded = RoundUpTo16(dim), size = length * padded;
        const auto head_rows = [&](const std::vector<float>& from, int64_t stride, int64_t head) {
          std::vector<float> rows(static_cast<size_t>(size), 0);
          for (int64_t t = 0; t < length; ++t)
            std::copy_n(from.data() + t * stride + head * dim, dim, rows.data() + t * padded);
          return rows;
        };
        const auto put = [&](const std::vector<float>& rows, int64_t stride, int64_t head, std::vector<float>* to) {
          for (int64_t t = 0; t < length; ++t)
            std::copy_n(rows.data() + t * padded, dim, to->data() + t * stride + head * dim);
        };
        std::vector<float> out(static_cast<size_t>(length * width)), grad(qkv.size(), 0);
        std::vector<float> scratch(
            static_cast<size_t>(std::max(AttentionScratch(length), AttentionBackwardScratch(length, dim))));
        for (int64_t kv = 0; kv < shape.kv_heads; ++kv) {
          const int64_t key = shape.heads + kv, value = key + shape.kv_heads;
          const auto keys = head_rows(qkv, row, key), values = head_rows(qkv, row, value);
          std::vector<float> dkeys(static_cast<size_t>(size), 0), dvalues = dkeys, result = dkeys;
          for (int64_t head = 2 * kv; head < 2 * kv + 2; ++head) {
            const auto queries = head_rows(qkv, row, head);
            // In two parts, as a prompt is read: the second begins within the sequence.
            const int64_t first = length / 3;
            CausalAttention(shape, queries.data(), keys.data(), values.data(), 0, first, scratch.data(), result.data());
            CausalAttention(shape, queries.data() + first * padded, keys.data(), values.data(), first, length - first,
                            scratch.data(), result.data() + first * padded);
            put(result, width, head, &out);
            CausalAttentionBackward(shape, head_rows(upstream, width, head).data(), queries.data(), keys.data(),
                                    values.data(), length, scratch.data(), result.data(), dkeys.data(), dvalues.data());
            put(result, row, head, &grad);
          }
          put(dkeys, row, key, &grad);
          put(dvalues, row, value, &grad);
        }
        // A step of decoding gives the same bytes as the row of the whole.
        for (int64_t t = 0; t < length; ++t) {
          std::vector<float> keys(static_cast<size_t>(shape.kv_heads * length * dim)), values = keys, one(width);
          for (int64_t kv = 0; kv < shape.kv_heads; ++kv) {
            for (int64_t p = 0; p <= t; ++p) {
              const float* const key = qkv.data() + p * row + (shape.heads + kv) * dim;
              std::copy_n(key, dim, keys.data() + (kv * length + p) * dim);
              std::copy_n(key + shape.kv_heads * dim, dim, values.data() + (kv * length + p) * dim);
            }
          }
          const CachedQuery query{qkv.data() + t * row, 0, length, t + 1, one.data()};
          DecodeAttention(shape, &query, 1, keys.data(), values.data(), scratch.data());
          for (int64_t i = 0; i < width; ++i) ASSERT_EQ(one[i], out[t * width + i]) << "position " << t;
        }
        std::vector<double> x(qkv.begin(), qkv.end());
        const auto expected = forward(x);
        for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 2e-6);
        const auto loss = [&](const std::vector<double>& at) {
          const auto y = forward(at);
          double total = 0;
          for (size_t i = 0; i < y.size(); ++i) total += y[i] * upstream[i];
          return total;
        };
        for (size_t i = 11; i < x.size(); i += 97) {
          const double kept = x[i], step = 1e-5;
          x[i] = kept + step;
          const double above = loss(x);
          x[i] = kept - step;
          const double below = loss(x);
          x[i] = kept;
          ASSERT_NEAR(grad[i], (above - below) / (2 * step), 2e-4) << i << " window " << window << " cap " << cap;
        }
      }
    }
  }
}

// Machines with and without AVX-512 agree to the bit: a deterministic job may use both.
TEST(KernelsTest, BothVectorWidthsGiveTheSameBytes) {
  if (!__builtin_cpu_supports("x86-64-v4")) GTEST_SKIP() << "this machine has no AVX-512";
  const int64_t rows = 17, width = 53, inner = 600;
  const auto a = Random(rows * inner, 1), b = Random(width * inner, 2), weight = Random(width, 3),
             bias = Random(width, 4);
  AttentionShape shape;
  shape.heads = 2;
  shape.kv_heads = 1;
  shape.dim = 32;
  shape.scale = 0.3F;
  shape.softcap = 5;
  const auto results = [&](const KernelTable& table) {
    std::vector<float> out(rows * width), norm(rows * width), dx(rows * width), dw(width), db(width), moments(2 * rows),
        gelu(rows * width);
    std::vector<float> packed(static_cast<size_t>(PackedSize(width, inner)));
    table.pack_panels(b.data(), inner, 1, width, inner, packed.data());
    table.product(a.data(), inner, 1, packed.data(), bias.data(), rows, width, inner, out.data(), width, false);
    std::vector<int8_t> left(rows * inner), right(width * inner);
    std::vector<int32_t> sums(rows * width);
    std::vector<float> left_scales(rows), right_scales(width), int8(rows * width);
    table.quantize_rows(a.data(), inner, rows, inner, left.data(), left_scales.data());
    table.quantize_rows(b.data(), inner, width, inner, right.data(), right_scales.data());
    table.int8_matmul_nt(left.data(), right.data(), rows, width, inner, sums.data());
    table.dequantize(sums.data(), left_scales.data(), right_scales.data(), bias.data(), rows, width, int8.data());
    table.layer_norm(out.data(), weight.data(), bias.data(), 1e-5F, rows, width, norm.data(), moments.data());
    table.layer_norm_backward(out.data(), norm.data(), weight.data(), moments.data(), rows, width, dx.data(), dw.data(),
                              db.data());
    table.rms_norm(norm.data(), weight.data(), 1e-5F, rows, width, norm.data(), nullptr);
    for (const Unary kind : {Unary::kSilu, Unary::kGelu, Unary::kGeluTanh})
      table.activate(kind, norm.data(), out.data(), rows, width, width,
                     kind == Unary::kSilu ? gelu.data() : norm.data());
    const int64_t length = 150, size = length * RoundUpTo16(shape.dim);
    const auto q = Random(static_cast<size_t>(size), 5), k = Random(static_cast<size_t>(size), 6),
               v = Random(static_cast<size_t>(size), 7);
    std::vector<float> attended(size), grad(3 * size), scratch(AttentionBackwardScratch(length, shape.dim));
    table.causal_attention(shape, q.data(), k.data(), v.data(), 0, length, scratch.data(), attended.data());
    table.causal_attention_backward(shape, attended.data(), q.data(), k.data(), v.data(), length, scratch.data(),
                                    grad.data(), grad.data() + size, grad.data() + 2 * size);
    for (const auto* part : {&left_scales, &right_scales, &int8, &norm, &dx, &dw, &db, &gelu, &attended, &grad})
      out.insert(out.end(), part->begin(), part->end());
    out.push_back(table.log_sum_exp(a.data(), rows * inner, 0.7F, nullptr, nullptr));
    out.push_back(table.entropy(a.data(), rows * inner, 0.7F, out.back()));
    return out;
  };
  EXPECT_EQ(results(kTableV3), results(kTableV4));
}

}  // namespace
}  // namespace rlhf::model::kernels
