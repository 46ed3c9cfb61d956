#include "model/int8_linear.h"

#include <algorithm>

#include <ATen/Parallel.h>

#include "model/divide.h"
#include "model/kernels/cpu_kernels.h"

namespace rlhf::model {
namespace {

constexpr int64_t kMostInner = 2147483647 / (127 * 127);

// Without these instructions the library's partial sums saturate at 16 bits.
bool LibraryIsExact() {
  static const bool exact = __builtin_cpu_supports("avx512vnni");
  return exact;
}

void Quantize(const torch::Tensor& x, const torch::Tensor& values, const torch::Tensor& scales) {
  const float* in = x.data_ptr<float>();
  int8_t* out = values.data_ptr<int8_t>();
  float* out_scales = scales.data_ptr<float>();
  const int64_t width = x.size(1);
  at::parallel_for(0, x.size(0), RowsTogether(width), [&](int64_t begin, int64_t end) {
    kernels::QuantizeRows(in + begin * width, width, end - begin, width, out + begin * width, out_scales + begin);
  });
}

torch::Tensor Products(const torch::Tensor& a, const torch::Tensor& b) {
  const int64_t rows = a.size(0), columns = b.size(0), inner = a.size(1);
  // A weight of one column is its own transpose in memory, and the library takes it for that.
  if (LibraryIsExact() && rows > 0 && inner > 1) return at::_int_mm(a, b.t());
  torch::Tensor c = torch::empty({rows, columns}, a.options().dtype(torch::kInt32));
  const int8_t *left = a.data_ptr<int8_t>(), *right = b.data_ptr<int8_t>();
  int32_t* out = c.data_ptr<int32_t>();
  at::parallel_for(0, rows, RowsTogether(columns), [&](int64_t begin, int64_t end) {
    kernels::Int8MatmulNT(left + begin * inner, right, end - begin, columns, inner, out + begin * columns);
  });
  return c;
}

}  // namespace

Int8Weight::Int8Weight(int64_t out, int64_t in)
    : values(torch::empty({out, in}, torch::kInt8)), scales(torch::empty({out}, torch::kFloat32)) {
  TORCH_CHECK(in <= kMostInner, "int8 weights: expected at most ", kMostInner, " inputs of a projection, found ", in);
}

void Int8Weight::SetRows(int64_t first, const torch::Tensor& weight) {
  const int64_t rows = weight.size(0);
  Quantize(weight.detach().to(torch::kFloat32).contiguous(), values.narrow(0, first, rows),
           scales.narrow(0, first, rows));
}

torch::Tensor Int8Linear(const torch::Tensor& x_in, const Int8Weight& weight, const torch::Tensor& bias) {
  TORCH_CHECK(!(torch::GradMode::is_enabled() && x_in.requires_grad()), "int8 weights have no gradient");
  const torch::Tensor x = x_in.contiguous();
  const int64_t rows = x.size(0), columns = weight.values.size(0);
  const torch::Tensor quantized = torch::empty(x.sizes(), x.options().dtype(torch::kInt8)),
                      scales = torch::empty({rows}, x.options());
  Quantize(x, quantized, scales);
  const torch::Tensor products = Products(quantized, weight.values);
  const torch::Tensor y = torch::empty({rows, columns}, x.options());
  const torch::Tensor bias_rows = bias.defined() ? bias.contiguous() : torch::Tensor();
  const float* bias_data = bias_rows.defined() ? bias_rows.data_ptr<float>() : nullptr;
  const float *row_scales = scales.data_ptr<float>(), *column_scales = weight.scales.data_ptr<float>();
  const int32_t* in = products.data_ptr<int32_t>();
  float* out = y.data_ptr<float>();
  at::parallel_for(0, rows, RowsTogether(columns), [&](int64_t begin, int64_t end) {
    kernels::Dequantize(in + begin * columns, row_scales + begin, column_scales, bias_data, end - begin, columns,
                        out + begin * columns);
  });
  return y;
}

}  // namespace rlhf::model
