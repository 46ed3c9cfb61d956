#include "model/fused_ops.h"

#include "model/kernels/cpu_kernels.h"

namespace rlhf::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

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

class LayerNormFunction : public torch::autograd::Function<LayerNormFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& input, const torch::Tensor& weight,
                               const torch::Tensor& bias, double eps) {
    const torch::Tensor x = input.contiguous();
    torch::Tensor y = torch::empty_like(x);
    torch::Tensor moments = torch::empty({x.size(0), 2}, x.options());
    kernels::LayerNorm(x.data_ptr<float>(), weight.data_ptr<float>(), bias.data_ptr<float>(), static_cast<float>(eps),
                       x.size(0), x.size(1), y.data_ptr<float>(), moments.data_ptr<float>());
    context->save_for_backward({x, weight, moments});
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor dy = grads[0].contiguous();
    torch::Tensor dx = torch::empty_like(saved[0]);
    torch::Tensor dweight = torch::zeros_like(saved[1]), dbias = torch::zeros_like(saved[1]);
    kernels::LayerNormBackward(dy.data_ptr<float>(), saved[0].data_ptr<float>(), saved[1].data_ptr<float>(),
                               saved[2].data_ptr<float>(), dy.size(0), dy.size(1), dx.data_ptr<float>(),
                               dweight.data_ptr<float>(), dbias.data_ptr<float>());
    return {dx, dweight, dbias, torch::Tensor()};
  }
};

void RotateInPlace(torch::Tensor& x, int64_t heads, const torch::Tensor& positions, const torch::Tensor& cos,
                   const torch::Tensor& sin, float direction) {
  kernels::Rotate(x.data_ptr<float>(), positions.data_ptr<int64_t>(), cos.data_ptr<float>(), sin.data_ptr<float>(),
                  x.size(0), heads, x.size(2), 2 * cos.size(1), x.size(1) * x.size(2), direction);
}

class RotaryFunction : public torch::autograd::Function<RotaryFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& qkv, int64_t heads,
                               const torch::Tensor& positions, const torch::Tensor& cos, const torch::Tensor& sin) {
    torch::Tensor out = qkv.contiguous().clone();
    RotateInPlace(out, heads, positions, cos, sin, 1.0F);
    context->saved_data["heads"] = heads;
    context->save_for_backward({positions, cos, sin});
    return out;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    torch::Tensor grad = grads[0].contiguous().clone();
    RotateInPlace(grad, context->saved_data["heads"].toInt(), saved[0], saved[1], saved[2], -1.0F);
    return {grad, torch::Tensor(), torch::Tensor(), torch::Tensor(), torch::Tensor()};
  }
};

kernels::Unary ToKernel(artifact::Activation kind) {
  switch (kind) {
    case artifact::Activation::kSilu:
      return kernels::Unary::kSilu;
    case artifact::Activation::kGelu:
      return kernels::Unary::kGelu;
    case artifact::Activation::kGeluTanh:
      break;
  }
  return kernels::Unary::kGeluTanh;
}

class ActivateFunction : public torch::autograd::Function<ActivateFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& input, int64_t kind, bool gated) {
    const torch::Tensor x = input.contiguous();
    const int64_t width = gated ? x.size(1) / 2 : x.size(1);
    torch::Tensor y = torch::empty({x.size(0), width}, x.options());
    const float* gate = x.data_ptr<float>();
    kernels::Activate(static_cast<kernels::Unary>(kind), gate, gated ? gate + width : nullptr, x.size(0), width,
                      x.size(1), y.data_ptr<float>());
    context->saved_data["kind"] = kind;
    context->saved_data["gated"] = gated;
    context->save_for_backward({x});
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const torch::Tensor x = context->get_saved_variables()[0];
    const bool gated = context->saved_data["gated"].toBool();
    const torch::Tensor dy = grads[0].contiguous();
    torch::Tensor dx = torch::empty_like(x);
    const float* gate = x.data_ptr<float>();
    float* dgate = dx.data_ptr<float>();
    kernels::ActivateBackward(static_cast<kernels::Unary>(context->saved_data["kind"].toInt()), dy.data_ptr<float>(),
                              gate, gated ? gate + dy.size(1) : nullptr, dy.size(0), dy.size(1), x.size(1), dgate,
                              gated ? dgate + dy.size(1) : nullptr);
    return {dx, torch::Tensor(), torch::Tensor()};
  }
};

torch::Tensor Unary(const torch::Tensor& x, artifact::Activation kind) {
  if (kind == artifact::Activation::kSilu) return torch::silu(x);
  return torch::gelu(x, kind == artifact::Activation::kGeluTanh ? "tanh" : "none");
}

}  // namespace

torch::Tensor RmsNorm(const torch::Tensor& x, const torch::Tensor& weight, double eps, bool offset) {
  if (HasKernels(x)) return RmsNormFunction::apply(x, offset ? weight + 1 : weight, eps);
  const torch::Tensor wide = x.to(torch::kFloat32);
  const torch::Tensor scaled = wide * torch::rsqrt(wide.pow(2).mean(-1, /*keepdim=*/true) + eps);
  if (offset) return (scaled * (1 + weight.to(torch::kFloat32))).to(x.scalar_type());
  return scaled.to(x.scalar_type()) * weight;
}

torch::Tensor LayerNorm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias, double eps) {
  if (HasKernels(x)) return LayerNormFunction::apply(x, weight, bias, eps);
  return torch::layer_norm(x, {x.size(1)}, weight, bias, eps);
}

torch::Tensor ApplyRotary(const torch::Tensor& qkv, int64_t heads, const RotaryRows& rows) {
  if (HasKernels(qkv)) return RotaryFunction::apply(qkv, heads, rows.index, rows.cos, rows.sin);
  const torch::Tensor cos = rows.cos.index_select(0, rows.index).unsqueeze(1).to(qkv.scalar_type());
  const torch::Tensor sin = rows.sin.index_select(0, rows.index).unsqueeze(1).to(qkv.scalar_type());
  const int64_t turning = 2 * rows.cos.size(1);
  const torch::Tensor all = qkv.narrow(1, 0, heads);
  const auto halves = all.narrow(2, 0, turning).chunk(2, -1);
  const torch::Tensor turned = torch::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin,
                                           all.narrow(2, turning, all.size(2) - turning)},
                                          -1);
  return torch::cat({turned, qkv.narrow(1, heads, qkv.size(1) - heads)}, 1);
}

torch::Tensor Activate(const torch::Tensor& x, artifact::Activation kind, bool gated) {
  if (HasKernels(x)) return ActivateFunction::apply(x, static_cast<int64_t>(ToKernel(kind)), gated);
  if (!gated) return Unary(x, kind);
  const auto halves = x.chunk(2, -1);
  return Unary(halves[0], kind) * halves[1];
}

torch::Tensor Softcap(const torch::Tensor& x, double cap) {
  if (!HasKernels(x) || (x.requires_grad() && torch::GradMode::is_enabled())) return cap * torch::tanh(x / cap);
  torch::Tensor out = x.contiguous().clone();
  kernels::Softcap(out.data_ptr<float>(), out.numel(), static_cast<float>(cap));
  return out;
}

}  // namespace rlhf::model
