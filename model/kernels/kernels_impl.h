// The kernels' bodies, compiled once for each instruction set. See cpu_kernels.h for what they promise.
#include "model/kernels/attention_impl.h"
#include "model/kernels/int8_impl.h"
#include "model/kernels/product_impl.h"
#include "model/kernels/table.h"
#include "model/kernels/vector.h"

namespace rlhf::model::kernels {
namespace {

// ---- bfloat16

void WidenImpl(const uint16_t* x, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(y + i, Load(x + i));
  for (; i < count; ++i) y[i] = Wide(x[i]);
}

void NarrowImpl(const float* x, int64_t count, uint16_t* y) {
  using Shorts = uint16_t __attribute__((vector_size(32)));
  using Words = uint32_t __attribute__((vector_size(64)));
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = count - i;
    const Vec from = left >= kLanes ? Load(x + i) : LoadPart(x + i, left);
    const Words bits = (Words)from;
    const Words rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    // Rounding must not make an infinity of what is not a number.
    const Words words = from == from ? rounded : (bits >> 16) | 0x40U;
    const Shorts narrow = __builtin_convertvector(words, Shorts);
    __builtin_memcpy(y + i, &narrow, static_cast<size_t>(left >= kLanes ? kLanes : left) * sizeof(uint16_t));
  }
}

// ---- norms, positions, activations

RLHF_INLINE float SumOfProducts(const float* x, const float* y, const float* z, int64_t width) {
  Vec sum = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
    sum += z == nullptr ? Load(x + i) * Load(y + i) : Load(x + i) * Load(y + i) * Load(z + i);
  if (i < width) {
    const int64_t n = width - i;
    const Vec product = LoadPart(x + i, n) * LoadPart(y + i, n);
    sum += z == nullptr ? product : product * LoadPart(z + i, n);
  }
  return Sum(sum);
}

void RmsNormImpl(const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* y,
                 float* inverse) {
  for (int64_t t = 0; t < rows; ++t) {
    const float* in = x + t * width;
    float* out = y + t * width;
    const float scale = 1.0F / __builtin_sqrtf(SumOfProducts(in, in, nullptr, width) / static_cast<float>(width) + eps);
    if (inverse != nullptr) inverse[t] = scale;
    for (int64_t i = 0; i < width; ++i) out[i] = in[i] * scale * weight[i];
  }
}

void RmsNormBackwardImpl(const float* dy, const float* x, const float* weight, const float* inverse, int64_t rows,
                         int64_t width, float* dx, float* dweight) {
  for (int64_t t = 0; t < rows; ++t) {
    const float* g = dy + t * width;
    const float* in = x + t * width;
    float* out = dx + t * width;
    const float scale = inverse[t];
    const float correction = SumOfProducts(g, weight, in, width) * scale * scale * scale / static_cast<float>(width);
    for (int64_t i = 0; i < width; ++i) {
      dweight[i] += g[i] * in[i] * scale;
      out[i] = g[i] * weight[i] * scale - in[i] * correction;
    }
  }
}

// Σ (x − a) · (y − b), and Σ (x − a) with y null.
RLHF_INLINE float SumOfDifferences(const float* x, float a, const float* y, float b, int64_t width) {
  Vec sum = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vec left = Load(x + i) - a;
    sum += y == nullptr ? left : left * (Load(y + i) - b);
  }
  if (i < width) {
    const Vec left = LoadPart(x + i, width - i, a) - a;
    sum += y == nullptr ? left : left * (LoadPart(y + i, width - i, b) - b);
  }
  return Sum(sum);
}

void LayerNormImpl(const float* x, const float* weight, const float* bias, float eps, int64_t rows, int64_t width,
                   float* y, float* moments) {
  const auto n = static_cast<float>(width);
  for (int64_t t = 0; t < rows; ++t) {
    const float* in = x + t * width;
    float* out = y + t * width;
    const float mean = SumOfDifferences(in, 0, nullptr, 0, width) / n;
    const float inverse = 1.0F / __builtin_sqrtf(SumOfDifferences(in, mean, in, mean, width) / n + eps);
    moments[2 * t] = mean;
    moments[2 * t + 1] = inverse;
    for (int64_t i = 0; i < width; ++i) out[i] = (in[i] - mean) * inverse * weight[i] + bias[i];
  }
}

void LayerNormBackwardImpl(const float* dy, const float* x, const float* weight, const float* moments, int64_t rows,
                           int64_t width, float* dx, float* dweight, float* dbias) {
  const auto n = static_cast<float>(width);
  for (int64_t t = 0; t < rows; ++t) {
    const float* g = dy + t * width;
    const float* in = x + t * width;
    float* out = dx + t * width;
    const float mean = moments[2 * t], inverse = moments[2 * t + 1];
    // dx = inverse · (ŷ' − mean(ŷ') − x̂ · mean(ŷ' x̂)) with ŷ' = dy · weight and x̂ the normalised input; the first pass
    // writes ŷ' into dx.
    for (int64_t i = 0; i < width; ++i) {
      const float normal = (in[i] - mean) * inverse;
      dweight[i] += g[i] * normal;
      dbias[i] += g[i];
      out[i] = g[i] * weight[i];
    }
    const float shift = SumOfDifferences(out, 0, nullptr, 0, width) / n;
    const float slope = SumOfDifferences(out, 0, in, mean, width) * inverse / n;
    for (int64_t i = 0; i < width; ++i) out[i] = inverse * (out[i] - shift - (in[i] - mean) * inverse * slope);
  }
}

void RotateImpl(float* x, const int64_t* positions, const float* cos, const float* sin, int64_t rows, int64_t heads,
                int64_t dim, int64_t turning, int64_t row_stride, float direction) {
  const int64_t half = turning / 2;
  for (int64_t t = 0; t < rows; ++t) {
    const float* c = cos + positions[t] * half;
    const float* s = sin + positions[t] * half;
    for (int64_t h = 0; h < heads; ++h) {
      float* a = x + t * row_stride + h * dim;
      float* b = a + half;
      for (int64_t i = 0; i < half; ++i) {
        const float sine = s[i] * direction;
        const float first = a[i], second = b[i];
        a[i] = first * c[i] - second * sine;
        b[i] = second * c[i] + first * sine;
      }
    }
  }
}

constexpr float kSqrt2OverPi = 0.7978845608028654F, kGeluCubic = 0.044715F, kInvSqrt2 = 0.7071067811865476F,
                kInvSqrt2Pi = 0.3989422804014327F;

template <Unary kind>
RLHF_INLINE Vec Apply(Vec g) {
  if (kind == Unary::kSilu) return g / (1.0F + Exp(-g));
  if (kind == Unary::kGelu) return 0.5F * g * (1.0F + Erf(g * kInvSqrt2));
  return 0.5F * g * (1.0F + Tanh(kSqrt2OverPi * (g + kGeluCubic * g * g * g)));
}
// f(g), and its derivative.
template <Unary kind>
RLHF_INLINE Vec ApplyBoth(Vec g, Vec* derivative) {
  if (kind == Unary::kSilu) {
    const Vec sigmoid = 1.0F / (1.0F + Exp(-g));
    *derivative = sigmoid * (1.0F + g * (1.0F - sigmoid));
    return g * sigmoid;
  }
  if (kind == Unary::kGelu) {
    const Vec below = 0.5F * (1.0F + Erf(g * kInvSqrt2));
    *derivative = below + g * Exp(-0.5F * g * g) * kInvSqrt2Pi;
    return g * below;
  }
  const Vec t = Tanh(kSqrt2OverPi * (g + kGeluCubic * g * g * g)), half = 0.5F * (1.0F + t);
  *derivative = half + 0.5F * g * (1.0F - t * t) * kSqrt2OverPi * (1.0F + 3.0F * kGeluCubic * g * g);
  return g * half;
}

template <Unary kind>
void ActivateAs(const float* gate, const float* up, int64_t rows, int64_t width, int64_t stride, float* y) {
  for (int64_t t = 0; t < rows; ++t) {
    const float* g = gate + t * stride;
    const float* u = up == nullptr ? nullptr : up + t * stride;
    float* out = y + t * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const int64_t n = width - i;
      if (n >= kLanes) {
        const Vec f = Apply<kind>(Load(g + i));
        Store(out + i, u == nullptr ? f : f * Load(u + i));
      } else {
        const Vec f = Apply<kind>(LoadPart(g + i, n));
        StorePart(out + i, u == nullptr ? f : f * LoadPart(u + i, n), n);
      }
    }
  }
}
template <Unary kind>
void ActivateBackwardAs(const float* dy, const float* gate, const float* up, int64_t rows, int64_t width,
                        int64_t stride, float* dgate, float* dup) {
  for (int64_t t = 0; t < rows; ++t) {
    const float* d = dy + t * width;
    const float* g = gate + t * stride;
    for (int64_t i = 0; i < width; i += kLanes) {
      const int64_t n = width - i < kLanes ? width - i : kLanes;
      const Vec grad = n == kLanes ? Load(d + i) : LoadPart(d + i, n);
      const Vec in = n == kLanes ? Load(g + i) : LoadPart(g + i, n);
      Vec derivative;
      const Vec value = ApplyBoth<kind>(in, &derivative);
      Vec to_gate = grad * derivative;
      if (up != nullptr) {
        const float* u = up + t * stride + i;
        to_gate *= n == kLanes ? Load(u) : LoadPart(u, n);
        StoreSome(dup + t * stride + i, grad * value, n);
      }
      StoreSome(dgate + t * stride + i, to_gate, n);
    }
  }
}
void ActivateImpl(Unary kind, const float* gate, const float* up, int64_t rows, int64_t width, int64_t stride,
                  float* y) {
  if (kind == Unary::kSilu) return ActivateAs<Unary::kSilu>(gate, up, rows, width, stride, y);
  if (kind == Unary::kGelu) return ActivateAs<Unary::kGelu>(gate, up, rows, width, stride, y);
  ActivateAs<Unary::kGeluTanh>(gate, up, rows, width, stride, y);
}
void ActivateBackwardImpl(Unary kind, const float* dy, const float* gate, const float* up, int64_t rows, int64_t width,
                          int64_t stride, float* dgate, float* dup) {
  if (kind == Unary::kSilu) return ActivateBackwardAs<Unary::kSilu>(dy, gate, up, rows, width, stride, dgate, dup);
  if (kind == Unary::kGelu) return ActivateBackwardAs<Unary::kGelu>(dy, gate, up, rows, width, stride, dgate, dup);
  ActivateBackwardAs<Unary::kGeluTanh>(dy, gate, up, rows, width, stride, dgate, dup);
}

// ---- distributions

float LogSumExpImpl(const float* row, int64_t width, float inverse_temperature, float* exps, float* max_out) {
  Vec most = Splat(row[0]);
  for (int64_t i = 0; i < width; i += kLanes)
    most = Max(most, width - i >= kLanes ? Load(row + i) : LoadPart(row + i, width - i, row[0]));
  float highest = most[0];
  for (int64_t i = 1; i < kLanes; ++i) highest = most[i] > highest ? most[i] : highest;
  highest *= inverse_temperature;
  Vec sum = {};
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t n = width - i;
    if (n >= kLanes) {
      const Vec e = Exp(Load(row + i) * inverse_temperature - highest);
      if (exps != nullptr) Store(exps + i, e);
      sum += e;
    } else {
      const Vec e = Exp(LoadPart(row + i, n, -__builtin_inff()) * inverse_temperature - highest);
      if (exps != nullptr) StorePart(exps + i, e, n);
      sum += e;
    }
  }
  if (max_out != nullptr) *max_out = highest;
  return highest + __builtin_logf(Sum(sum));
}

void LogSoftmaxBackwardImpl(const float* row, int64_t width, float inverse_temperature, float log_sum, int64_t target,
                            float grad, float* d) {
  const float scale = grad * inverse_temperature;
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t n = width - i;
    if (n >= kLanes) {
      Store(d + i, -scale * Exp(Load(row + i) * inverse_temperature - log_sum));
    } else {
      StorePart(d + i, -scale * Exp(LoadPart(row + i, n) * inverse_temperature - log_sum), n);
    }
  }
  d[target] += scale;
}

float EntropyImpl(const float* row, int64_t width, float inverse_temperature, float log_sum) {
  Vec sum = {};
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t n = width - i;
    // A logit of −inf has probability 0 and adds nothing.
    const Vec x = (n >= kLanes ? Load(row + i) : LoadPart(row + i, n, -1e30F)) * inverse_temperature - log_sum;
    const Vec p = Exp(x);
    sum += p > 0.0F ? p * x : Vec{};
  }
  return -Sum(sum);
}

void SoftcapImpl(float* x, int64_t count, float cap) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = count - i;
    if (n >= kLanes) {
      Store(x + i, cap * Tanh(Load(x + i) / cap));
    } else {
      StorePart(x + i, cap * Tanh(LoadPart(x + i, n) / cap), n);
    }
  }
}

}  // namespace

const KernelTable RLHF_KERNEL_TABLE = {.name = RLHF_KERNEL_NAME,
                                       .pack_panels = PackPanelsImpl,
                                       .product = ProductImpl,
                                       .widen = WidenImpl,
                                       .narrow = NarrowImpl,
                                       .quantize_rows = QuantizeRowsImpl,
                                       .int8_matmul_nt = Int8MatmulNTImpl,
                                       .dequantize = DequantizeImpl,
                                       .rms_norm = RmsNormImpl,
                                       .rms_norm_backward = RmsNormBackwardImpl,
                                       .layer_norm = LayerNormImpl,
                                       .layer_norm_backward = LayerNormBackwardImpl,
                                       .rotate = RotateImpl,
                                       .activate = ActivateImpl,
                                       .activate_backward = ActivateBackwardImpl,
                                       .decode_attention = DecodeAttentionImpl<float>,
                                       .decode_attention_bf16 = DecodeAttentionImpl<uint16_t>,
                                       .causal_attention = CausalAttentionImpl,
                                       .causal_attention_backward = CausalAttentionBackwardImpl,
                                       .attention_weights = AttentionWeightsImpl,
                                       .score_gradients = ScoreGradientsImpl,
                                       .log_sum_exp = LogSumExpImpl,
                                       .log_softmax_backward = LogSoftmaxBackwardImpl,
                                       .entropy = EntropyImpl,
                                       .softcap = SoftcapImpl};

}  // namespace rlhf::model::kernels
