#include "model/fused_ops.h"

#include <algorithm>

#include "model/device.h"
#include "model/divide.h"
#include "model/float_rows.h"

namespace rlhf::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What the kernels take, and their result in the type that came.
torch::Tensor Wide(const torch::Tensor& x) {
  return x.to(torch::kFloat32).contiguous();
}
torch::Tensor As(const torch::Tensor& y, const torch::Tensor& like) {
  return y.to(like.scalar_type());
}

// fn(first row, rows, part) for parts of the rows, the same parts with any number of threads.
int64_t Parts(int64_t rows, int64_t width) {
  return (rows + RowsTogether(width) - 1) / RowsTogether(width);
}
template <typename Fn>
void ForRows(int64_t rows, int64_t width, const Fn& fn) {
  const int64_t together = RowsTogether(width);
  Divide(Parts(rows, width),
         [&](int64_t part) { fn(part * together, std::min(together, rows - part * together), part); });
}

// Another tensor's shape and type, without its values; and float32 on its device.
torch::Tensor Like(const torch::Tensor& x) {
  return torch::empty(x.sizes(), x.options().memory_format(at::MemoryFormat::Contiguous));
}
at::TensorOptions FloatOptions(const torch::Tensor& x) {
  return x.options().dtype(torch::kFloat32);
}

class RmsNormFunction : public torch::autograd::Function<RmsNormFunction> {
 public:
  // offset: the scale is 1 + weight.
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& input, const torch::Tensor& weight,
                               double eps, bool offset) {
    const torch::Tensor x = input.contiguous(), scale = offset ? Wide(weight) + 1 : Wide(weight);
    const int64_t rows = x.size(0), width = x.size(1);
    const torch::Tensor y = Like(x), inverse = torch::empty({rows}, FloatOptions(x));
    const FloatRows from(x), to(y);
    const float* const by = scale.data_ptr<float>();
    float* const kept = inverse.data_ptr<float>();
    ForRows(rows, width, [&](int64_t first, int64_t count, int64_t) {
      Scratch scratch({2 * count * width});
      const float* const in = from.In(first, count, scratch.Take(count * width));
      float* const out = to.Out(first, scratch.Take(count * width));
      kernels::RmsNorm(in, by, static_cast<float>(eps), count, width, out, kept + first);
      to.Written(first, count, out);
    });
    context->save_for_backward({x, weight, inverse});
    context->saved_data["offset"] = offset;
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const bool offset = context->saved_data["offset"].toBool();
    const torch::Tensor dy = grads[0].contiguous(), &x = saved[0], scale = offset ? Wide(saved[1]) + 1 : Wide(saved[1]);
    const int64_t rows = x.size(0), width = x.size(1);
    const torch::Tensor dx = Like(x), dweight = torch::zeros({Parts(rows, width), width}, FloatOptions(x));
    const FloatRows upstream(dy), from(x), to(dx);
    const float *const by = scale.data_ptr<float>(), *const kept = saved[2].data_ptr<float>();
    float* const weights = dweight.data_ptr<float>();
    ForRows(rows, width, [&](int64_t first, int64_t count, int64_t part) {
      Scratch scratch({3 * count * width});
      const float* const g = upstream.In(first, count, scratch.Take(count * width));
      const float* const in = from.In(first, count, scratch.Take(count * width));
      float* const out = to.Out(first, scratch.Take(count * width));
      kernels::RmsNormBackward(g, in, by, kept + first, count, width, out, weights + part * width);
      to.Written(first, count, out);
    });
    return {dx, As(dweight.sum(0), saved[1]), torch::Tensor(), torch::Tensor()};
  }
};

class LayerNormFunction : public torch::autograd::Function<LayerNormFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& input, const torch::Tensor& weight,
                               const torch::Tensor& bias, double eps) {
    const torch::Tensor x = input.contiguous(), scale = Wide(weight), shift = Wide(bias);
    const int64_t rows = x.size(0), width = x.size(1);
    const torch::Tensor y = Like(x), moments = torch::empty({rows, 2}, FloatOptions(x));
    const FloatRows from(x), to(y);
    const float *const by = scale.data_ptr<float>(), *const plus = shift.data_ptr<float>();
    float* const kept = moments.data_ptr<float>();
    ForRows(rows, width, [&](int64_t first, int64_t count, int64_t) {
      Scratch scratch({2 * count * width});
      const float* const in = from.In(first, count, scratch.Take(count * width));
      float* const out = to.Out(first, scratch.Take(count * width));
      kernels::LayerNorm(in, by, plus, static_cast<float>(eps), count, width, out, kept + 2 * first);
      to.Written(first, count, out);
    });
    context->save_for_backward({x, weight, moments});
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor dy = grads[0].contiguous(), &x = saved[0], scale = Wide(saved[1]);
    const int64_t rows = x.size(0), width = x.size(1);
    const torch::Tensor dx = Like(x), sums = torch::zeros({Parts(rows, width), 2, width}, FloatOptions(x));
    const FloatRows upstream(dy), from(x), to(dx);
    const float *const by = scale.data_ptr<float>(), *const kept = saved[2].data_ptr<float>();
    float* const weights = sums.data_ptr<float>();
    ForRows(rows, width, [&](int64_t first, int64_t count, int64_t part) {
      Scratch scratch({3 * count * width});
      const float* const g = upstream.In(first, count, scratch.Take(count * width));
      const float* const in = from.In(first, count, scratch.Take(count * width));
      float* const out = to.Out(first, scratch.Take(count * width));
      float* const dweight = weights + 2 * part * width;
      kernels::LayerNormBackward(g, in, by, kept + 2 * first, count, width, out, dweight, dweight + width);
      to.Written(first, count, out);
    });
    const torch::Tensor sum = sums.sum(0);
    return {dx, As(sum[0], saved[1]), As(sum[1], saved[1]), torch::Tensor()};
  }
};

class RotaryFunction : public torch::autograd::Function<RotaryFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& qkv, int64_t heads,
                               const torch::Tensor& positions, const torch::Tensor& cos, const torch::Tensor& sin) {
    context->saved_data["heads"] = heads;
    context->save_for_backward({positions, cos, sin});
    return Turned(qkv, heads, positions, cos, sin, 1.0F);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const int64_t heads = context->saved_data["heads"].toInt();
    return {Turned(grads[0], heads, saved[0], saved[1], saved[2], -1.0F), torch::Tensor(), torch::Tensor(),
            torch::Tensor(), torch::Tensor()};
  }

 private:
  static torch::Tensor Turned(const torch::Tensor& input, int64_t heads, const torch::Tensor& positions,
                              const torch::Tensor& cos, const torch::Tensor& sin, float direction) {
    const torch::Tensor x = input.contiguous(), y = Like(x);
    const int64_t dim = x.size(2), width = x.size(1) * dim;
    const FloatRows from(x), to(y);
    const int64_t* const at = positions.data_ptr<int64_t>();
    const float *c = cos.data_ptr<float>(), *s = sin.data_ptr<float>();
    ForRows(x.size(0), width, [&](int64_t first, int64_t count, int64_t) {
      Scratch scratch({count * width});
      float* const out = to.Out(first, scratch.Take(count * width));
      from.Read(first, count, width, out);  // the kernel turns in place
      kernels::Rotate(out, at + first, c, s, count, heads, dim, 2 * cos.size(1), width, direction);
      to.Written(first, count, out);
    });
    return y;
  }
};

class ActivateFunction : public torch::autograd::Function<ActivateFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& input, int64_t kind, bool gated) {
    const torch::Tensor x = input.contiguous();
    const int64_t width = gated ? x.size(1) / 2 : x.size(1), stride = x.size(1);
    const torch::Tensor y = torch::empty({x.size(0), width}, x.options());
    const FloatRows from(x), to(y);
    ForRows(x.size(0), stride, [&](int64_t first, int64_t count, int64_t) {
      Scratch scratch({count * (stride + width)});
      const float* const row = from.In(first, count, scratch.Take(count * stride));
      float* const out = to.Out(first, scratch.Take(count * width));
      kernels::Activate(static_cast<kernels::Unary>(kind), row, gated ? row + width : nullptr, count, width, stride,
                        out);
      to.Written(first, count, out);
    });
    context->saved_data["kind"] = kind;
    context->saved_data["gated"] = gated;
    context->save_for_backward({x});
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const torch::Tensor x = context->get_saved_variables()[0], dy = grads[0].contiguous(), dx = Like(x);
    const bool gated = context->saved_data["gated"].toBool();
    const auto kind = static_cast<kernels::Unary>(context->saved_data["kind"].toInt());
    const int64_t width = dy.size(1), stride = x.size(1);
    const FloatRows upstream(dy), from(x), to(dx);
    ForRows(x.size(0), stride, [&](int64_t first, int64_t count, int64_t) {
      Scratch scratch({count * (2 * stride + width)});
      const float* const g = upstream.In(first, count, scratch.Take(count * width));
      const float* const row = from.In(first, count, scratch.Take(count * stride));
      float* const out = to.Out(first, scratch.Take(count * stride));
      kernels::ActivateBackward(kind, g, row, gated ? row + width : nullptr, count, width, stride, out,
                                gated ? out + width : nullptr);
      to.Written(first, count, out);
    });
    return {dx, torch::Tensor(), torch::Tensor()};
  }
};

torch::Tensor Unary(const torch::Tensor& x, artifact::Activation kind) {
  if (kind == artifact::Activation::kSilu) return torch::silu(x);
  return torch::gelu(x, kind == artifact::Activation::kGeluTanh ? "tanh" : "none");
}

}  // namespace

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

torch::Tensor RmsNorm(const torch::Tensor& x, const torch::Tensor& weight, double eps, bool offset) {
  if (IsFloatOrBf16OnCpu(x)) return RmsNormFunction::apply(x, weight, eps, offset);
  if (x.is_cuda() && !offset && weight.scalar_type() == x.scalar_type()) {
    return std::get<0>(at::_fused_rms_norm(x, weight.sizes(), weight, eps));  // one kernel instead of eight
  }
  const torch::Tensor wide = x.to(torch::kFloat32);
  const torch::Tensor scaled = wide * torch::rsqrt(wide.pow(2).mean(-1, /*keepdim=*/true) + eps);
  if (offset) return (scaled * (1 + weight.to(torch::kFloat32))).to(x.scalar_type());
  return scaled.to(x.scalar_type()) * weight;
}

torch::Tensor LayerNorm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias, double eps) {
  if (IsFloatOrBf16OnCpu(x)) return LayerNormFunction::apply(x, weight, bias, eps);
  return torch::layer_norm(x, {x.size(1)}, weight, bias, eps);
}

torch::Tensor ApplyRotary(const torch::Tensor& qkv, int64_t heads, const RotaryRows& rows) {
  if (IsFloatOrBf16OnCpu(qkv)) return RotaryFunction::apply(qkv, heads, rows.index, rows.cos, rows.sin);
  const RotaryRows own = rows.token_cos.defined() ? rows : Gathered(rows, qkv.scalar_type());
  const torch::Tensor &cos = own.token_cos, &sin = own.token_sin;
  const int64_t turning = 2 * rows.cos.size(1);
  const auto parts = qkv.split_with_sizes({heads, qkv.size(1) - heads}, /*dim=*/1);
  const torch::Tensor& all = parts[0];
  const auto halves = all.narrow(2, 0, turning).chunk(2, -1);
  const torch::Tensor turned = torch::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin,
                                           all.narrow(2, turning, all.size(2) - turning)},
                                          -1);
  return torch::cat({turned, parts[1]}, 1);
}

torch::Tensor Activate(const torch::Tensor& x, artifact::Activation kind, bool gated) {
  if (IsFloatOrBf16OnCpu(x)) return ActivateFunction::apply(x, static_cast<int64_t>(ToKernel(kind)), gated);
  if (!gated) return Unary(x, kind);
  const auto halves = x.chunk(2, -1);
  return Unary(halves[0], kind) * halves[1];
}

torch::Tensor Softcap(const torch::Tensor& x, double cap) {
  if (!IsFloatOnCpu(x) || (x.requires_grad() && torch::GradMode::is_enabled())) return cap * torch::tanh(x / cap);
  torch::Tensor out = x.contiguous().clone();
  kernels::Softcap(out.data_ptr<float>(), out.numel(), static_cast<float>(cap));
  return out;
}

}  // namespace rlhf::model
