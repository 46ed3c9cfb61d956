// Products by our own kernels, in both types, against float64.
#include <cmath>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "model/libtorch.h"
#include "model/linear.h"

namespace rlhf::model {
namespace {

// [rows, columns], its numbers along a row, along a column, or within a wider matrix from an odd address on.
enum class Layout { kRows, kColumns, kWithin };
constexpr Layout kLayouts[] = {Layout::kRows, Layout::kColumns, Layout::kWithin};

torch::Tensor Matrix(int64_t rows, int64_t columns, torch::Dtype dtype, Layout layout) {
  switch (layout) {
    case Layout::kRows:
      return torch::randn({rows, columns}).to(dtype);
    case Layout::kColumns:
      return torch::randn({columns, rows}).to(dtype).t();
    case Layout::kWithin:
      return torch::randn({rows, columns + 4}).to(dtype).narrow(1, 1, columns);
  }
  return {};
}

std::vector<torch::Dtype> Types() {
  std::vector<torch::Dtype> types = {torch::kFloat32};
  if (ProductsAreOurs(torch::empty({1}, torch::kBFloat16))) types.push_back(torch::kBFloat16);
  return types;
}

// What a sum of `inner` products of standard normal numbers may be off by, and a rounding to the type.
double Bound(torch::Dtype dtype, int64_t inner) {
  const double sum = 1e-6 * static_cast<double>(inner);
  return dtype == torch::kFloat32 ? sum : sum + 5 * std::sqrt(static_cast<double>(inner)) / 256;
}

double Apart(const torch::Tensor& a, const torch::Tensor& b) {
  return (a.to(torch::kFloat64) - b.to(torch::kFloat64)).abs().max().item<double>();
}

TEST(LinearTest, ProductsAreThoseOfEveryShapeAndLayout) {
  torch::manual_seed(0);
  for (const torch::Dtype dtype : Types()) {
    for (const auto& [rows, columns, inner] : {std::tuple{1, 1, 1},
                                               {3, 33, 64},
                                               {29, 17, 129},
                                               {14, 40, 768},
                                               {30, 130, 801},
                                               {61, 16, 1600},
                                               {31, 700, 2048},
                                               {16, 1500, 900}}) {
      for (const Layout left : kLayouts) {
        for (const Layout right : kLayouts) {
          const torch::Tensor a = Matrix(rows, inner, dtype, left), b = Matrix(inner, columns, dtype, right),
                              bias = torch::randn({columns}).to(dtype);
          const torch::Tensor exact = a.to(torch::kFloat64).matmul(b.to(torch::kFloat64));
          const auto what = ::testing::Message() << dtype << " " << rows << " x " << columns << " x " << inner
                                                 << ", layouts " << static_cast<int>(left) << static_cast<int>(right);
          EXPECT_LE(Apart(MatmulFixedOrder(a, b), exact), Bound(dtype, inner)) << what;
          EXPECT_LE(Apart(MatmulFixedOrder(a, b, bias), exact + bias), Bound(dtype, inner)) << what;
          // In float32 nothing is rounded to the type.
          torch::Tensor out = torch::full({rows, columns}, NAN);
          MatmulFixedOrderInto(a, b, /*add=*/false, out);
          EXPECT_LE(Apart(out, exact), Bound(torch::kFloat32, inner)) << what;
          MatmulFixedOrderInto(a, b, /*add=*/true, out);
          EXPECT_LE(Apart(out, 2 * exact), 2 * Bound(torch::kFloat32, inner)) << what;
        }
      }
    }
  }
}

TEST(LinearTest, NothingIsMultipliedToo) {
  for (const torch::Dtype dtype : Types()) {
    for (const auto& [rows, columns, inner] : {std::tuple{0, 300, 900}, {5, 0, 900}, {5, 300, 0}}) {
      const torch::Tensor found =
          MatmulFixedOrder(torch::ones({rows, inner}, dtype), torch::ones({inner, columns}, dtype));
      EXPECT_TRUE(torch::equal(found, torch::zeros({rows, columns}, dtype))) << rows << " " << columns << " " << inner;
    }
  }
}

TEST(LinearTest, TypesThatAreNotMultipliedAreRefused) {
  const torch::Tensor a = torch::ones({2, 3}), b = torch::ones({3, 2});
  EXPECT_THROW(MatmulFixedOrder(a, b.to(torch::kBFloat16)), c10::Error);
  EXPECT_THROW(MatmulFixedOrder(a.to(torch::kFloat64), b.to(torch::kFloat64)), c10::Error);
  EXPECT_THROW(MatmulFixedOrder(a, b, torch::ones({3})), c10::Error);
}

TEST(LinearTest, ARowDependsOnNeitherTheOtherRowsNorTheThreads) {
  torch::manual_seed(1);
  const int threads = at::get_num_threads();
  for (const torch::Dtype dtype : Types()) {
    const torch::Tensor a = Matrix(150, 900, dtype, Layout::kRows), b = Matrix(900, 300, dtype, Layout::kColumns);
    at::set_num_threads(1);
    const torch::Tensor all = MatmulFixedOrder(a, b);
    at::set_num_threads(3);
    EXPECT_TRUE(torch::equal(MatmulFixedOrder(a, b), all));
    for (const int64_t row : {0, 77, 149}) {
      EXPECT_TRUE(torch::equal(MatmulFixedOrder(a.narrow(0, row, 1), b)[0], all[row])) << dtype << ", row " << row;
    }
  }
  at::set_num_threads(threads);
}

TEST(LinearTest, GradientsAreThoseOfLibTorch) {
  torch::manual_seed(2);
  for (const torch::Dtype dtype : Types()) {
    for (const bool transposed : {false, true}) {  // how the family keeps its weights
      const torch::Tensor x = torch::randn({53, 70}).to(dtype).requires_grad_(),
                          kept = torch::randn(transposed ? std::vector<int64_t>{70, 45} : std::vector<int64_t>{45, 70})
                                     .to(dtype)
                                     .requires_grad_(),
                          bias = torch::randn({45}).to(dtype).requires_grad_(),
                          upstream = torch::randn({45}).to(dtype).expand({53, 45});  // as a sum's gradient lies
      const auto grads = [&](const torch::Tensor& y) {
        return torch::autograd::grad({y}, {x, kept, bias}, {upstream});
      };
      const auto found = grads(LinearFixedOrder(x, transposed ? kept : kept.t(), bias));
      const auto wide = [](const torch::Tensor& t) { return t.detach().to(torch::kFloat64).requires_grad_(); };
      const torch::Tensor x64 = wide(x), kept64 = wide(kept), bias64 = wide(bias);
      const auto expected = torch::autograd::grad({torch::linear(x64, transposed ? kept64.t() : kept64, bias64)},
                                                  {x64, kept64, bias64}, {upstream.to(torch::kFloat64)});
      for (size_t i = 0; i < found.size(); ++i) {
        EXPECT_EQ(found[i].scalar_type(), dtype);
        const double rounding = dtype == torch::kFloat32 ? 1e-6 : 1.0 / 256;
        EXPECT_LE(Apart(found[i], expected[i]),
                  Bound(torch::kFloat32, 70) + rounding * expected[i].abs().max().item<double>())
            << dtype << ", gradient " << i;
      }
    }
  }
}

}  // namespace
}  // namespace rlhf::model
