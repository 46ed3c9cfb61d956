#include "model/linear.h"

#include <ATen/Parallel.h>

#include "model/kernels/cpu_kernels.h"

namespace rlhf::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kRowsTogether = 32, kColumnsTogether = 64;  // least work a thread takes

class FixedOrderLinearFunction : public torch::autograd::Function<FixedOrderLinearFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x, const torch::Tensor& weight,
                               const torch::Tensor& bias) {
    context->save_for_backward({x, weight});
    context->saved_data["bias"] = bias.numel() > 0;
    return FixedOrderMatmulNT(x, weight, bias.numel() > 0 ? bias : torch::Tensor());
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor dy = grads[0].contiguous();
    const torch::Tensor across = dy.t().contiguous();
    variable_list out(3);
    if (context->needs_input_grad(0)) out[0] = FixedOrderMatmulNT(dy, saved[1].t().contiguous());
    if (context->needs_input_grad(1)) out[1] = FixedOrderMatmulNT(across, saved[0].t().contiguous());
    if (context->saved_data["bias"].toBool() && context->needs_input_grad(2))
      out[2] = FixedOrderMatmulNT(torch::ones({1, dy.size(0)}, dy.options()), across).squeeze(0);
    return out;
  }
};

}  // namespace

torch::Tensor FixedOrderMatmulNT(const torch::Tensor& a_in, const torch::Tensor& b_in, const torch::Tensor& bias) {
  const torch::Tensor a = a_in.contiguous(), b = b_in.contiguous();
  const int64_t rows = a.size(0), columns = b.size(0), inner = a.size(1);
  torch::Tensor c = torch::empty({rows, columns}, a.options());
  const float* bias_data = bias.defined() ? bias.data_ptr<float>() : nullptr;
  const float *left = a.data_ptr<float>(), *right = b.data_ptr<float>();
  float* out = c.data_ptr<float>();
  if (rows >= columns) {
    at::parallel_for(0, rows, kRowsTogether, [&](int64_t begin, int64_t end) {
      kernels::MatmulNT(left + begin * inner, inner, right, inner, bias_data, end - begin, columns, inner,
                        out + begin * columns, columns);
    });
  } else {
    at::parallel_for(0, columns, kColumnsTogether, [&](int64_t begin, int64_t end) {
      kernels::MatmulNT(left, inner, right + begin * inner, inner, bias_data == nullptr ? nullptr : bias_data + begin,
                        rows, end - begin, inner, out + begin, columns);
    });
  }
  return c;
}

torch::Tensor FixedOrderLinear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) {
  // A custom function takes no undefined tensor: none has no elements.
  return FixedOrderLinearFunction::apply(x, weight, bias.defined() ? bias : torch::empty({0}, x.options()));
}

}  // namespace rlhf::model
