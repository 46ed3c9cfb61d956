#include "model/fused_ops.h"

#include "model/kernels/cpu_kernels.h"

namespace rlhf::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool Fusible(const torch::Tensor& x) {
  return x.device().is_cpu() && x.scalar_type() == torch::kFloat32;
}

class RmsNormFunction : public torch::autograd::Function<RmsNormFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& input, const torch::Tensor& weight,
                               double eps) {
    const torch::Tensor x = input.contiguous();
    torch::Tensor y = torch::empty_like(x);
    torch::Tensor inverse = torch::empty({x.size(0)}, x.options());
    kernels::RmsNorm(x.data_ptr<float>(), weight.data_ptr<float>(), static_cast<float>(eps), x.size(0), x.size(1),
                     y.data_ptr<float>(), inverse.data_ptr<float>());
    context->save_for_backward({x, weight, inverse});
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor dy = grads[0].contiguous();
    torch::Tensor dx = torch::empty_like(saved[0]);
    torch::Tensor dweight = torch::zeros_like(saved[1]);
    kernels::RmsNormBackward(dy.data_ptr<float>(), saved[0].data_ptr<float>(), saved[1].data_ptr<float>(),
                             saved[2].data_ptr<float>(), dy.size(0), dy.size(1), dx.data_ptr<float>(),
                             dweight.data_ptr<float>());
    return {dx, dweight, torch::Tensor()};
  }
};

void RotateInPlace(torch::Tensor& x, int64_t heads, const torch::Tensor& positions, const RotaryTable& table,
                   float direction) {
  kernels::Rotate(x.data_ptr<float>(), positions.data_ptr<int64_t>(), table.cos.data_ptr<float>(),
                  table.sin.data_ptr<float>(), x.size(0), heads, x.size(2), x.size(1) * x.size(2), direction);
}

class RotaryFunction : public torch::autograd::Function<RotaryFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& qkv, int64_t heads,
                               const torch::Tensor& positions, const torch::Tensor& cos, const torch::Tensor& sin) {
    torch::Tensor out = qkv.contiguous().clone();
    RotateInPlace(out, heads, positions, {cos, sin}, 1.0F);
    context->saved_data["heads"] = heads;
    context->save_for_backward({positions, cos, sin});
    return out;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    torch::Tensor grad = grads[0].contiguous().clone();
    RotateInPlace(grad, context->saved_data["heads"].toInt(), saved[0], {saved[1], saved[2]}, -1.0F);
    return {grad, torch::Tensor(), torch::Tensor(), torch::Tensor(), torch::Tensor()};
  }
};

class SiluMulFunction : public torch::autograd::Function<SiluMulFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& input) {
    const torch::Tensor gate_up = input.contiguous();
    torch::Tensor y = torch::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.options());
    kernels::SiluMul(gate_up.data_ptr<float>(), y.size(0), y.size(1), y.data_ptr<float>());
    context->save_for_backward({gate_up});
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const torch::Tensor gate_up = context->get_saved_variables()[0];
    const torch::Tensor dy = grads[0].contiguous();
    torch::Tensor out = torch::empty_like(gate_up);
    kernels::SiluMulBackward(dy.data_ptr<float>(), gate_up.data_ptr<float>(), dy.size(0), dy.size(1),
                             out.data_ptr<float>());
    return {out};
  }
};

}  // namespace

torch::Tensor RmsNorm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  if (Fusible(x)) return RmsNormFunction::apply(x, weight, eps);
  const torch::Tensor wide = x.to(torch::kFloat32);
  const torch::Tensor scaled = wide * torch::rsqrt(wide.pow(2).mean(-1, /*keepdim=*/true) + eps);
  return scaled.to(x.scalar_type()) * weight;
}

RotaryTable MakeRotaryTable(int64_t positions, int64_t dim, double theta, torch::Device device) {
  const torch::Tensor exponents =
      torch::arange(0, dim, 2, torch::kInt64).to(torch::kFloat32) / static_cast<double>(dim);
  const torch::Tensor frequencies = torch::pow(theta, exponents).reciprocal();
  const torch::Tensor angles = torch::outer(torch::arange(positions, torch::kInt64).to(torch::kFloat32), frequencies);
  return {angles.cos().contiguous().to(device), angles.sin().contiguous().to(device)};
}

torch::Tensor ApplyRotary(const torch::Tensor& qkv, int64_t heads, const torch::Tensor& positions,
                          const RotaryTable& table) {
  if (Fusible(qkv)) return RotaryFunction::apply(qkv, heads, positions, table.cos, table.sin);
  const torch::Tensor cos = table.cos.index_select(0, positions).unsqueeze(1).to(qkv.scalar_type());
  const torch::Tensor sin = table.sin.index_select(0, positions).unsqueeze(1).to(qkv.scalar_type());
  const torch::Tensor turned = qkv.narrow(1, 0, heads);
  const auto halves = turned.chunk(2, -1);
  return torch::cat({torch::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1),
                     qkv.narrow(1, heads, qkv.size(1) - heads)},
                    1);
}

torch::Tensor SiluMul(const torch::Tensor& gate_up) {
  if (Fusible(gate_up)) return SiluMulFunction::apply(gate_up);
  const auto halves = gate_up.chunk(2, -1);
  return torch::silu(halves[0]) * halves[1];
}

}  // namespace rlhf::model
