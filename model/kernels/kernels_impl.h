// The kernels' bodies, compiled once for each instruction set. See cpu_kernels.h for what they promise.
#include "model/kernels/int8_impl.h"
#include "model/kernels/product_impl.h"
#include "model/kernels/table.h"
#include "model/kernels/vector.h"

namespace rlhf::model::kernels {
namespace {

// ---- dot products

// Rows × Columns = 16 dot products at once, each in the order of Sum.
template <int Rows, int Columns, typename Number>
RLHF_INLINE Vec Dot16(const float* const* a, const Number* const* b, int64_t inner) {
  Vec sums[16] = {};
  int64_t k = 0;
  for (; k + kLanes <= inner; k += kLanes) {
    Vec right[Columns];
    for (int j = 0; j < Columns; ++j) right[j] = Load(b[j] + k);
    for (int i = 0; i < Rows; ++i) {
      const Vec left = Load(a[i] + k);
      for (int j = 0; j < Columns; ++j) sums[i * Columns + j] += left * right[j];
    }
  }
  if (k < inner) {
    Vec right[Columns];
    for (int j = 0; j < Columns; ++j) right[j] = LoadPart(b[j] + k, inner - k);
    for (int i = 0; i < Rows; ++i) {
      const Vec left = LoadPart(a[i] + k, inner - k);
      for (int j = 0; j < Columns; ++j) sums[i * Columns + j] += left * right[j];
    }
  }
  return Sum16(sums);
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
template <Unary kind>
RLHF_INLINE Vec Derivative(Vec g) {
  if (kind == Unary::kSilu) {
    const Vec sigmoid = 1.0F / (1.0F + Exp(-g));
    return sigmoid * (1.0F + g * (1.0F - sigmoid));
  }
  if (kind == Unary::kGelu) return 0.5F * (1.0F + Erf(g * kInvSqrt2)) + g * Exp(-0.5F * g * g) * kInvSqrt2Pi;
  const Vec t = Tanh(kSqrt2OverPi * (g + kGeluCubic * g * g * g));
  return 0.5F * (1.0F + t) + 0.5F * g * (1.0F - t * t) * kSqrt2OverPi * (1.0F + 3.0F * kGeluCubic * g * g);
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
      Vec to_gate = grad * Derivative<kind>(in);
      if (up != nullptr) {
        const float* u = up + t * stride + i;
        to_gate *= n == kLanes ? Load(u) : LoadPart(u, n);
        StorePart(dup + t * stride + i, grad * Apply<kind>(in), n);
      }
      StorePart(dgate + t * stride + i, to_gate, n);
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

// ---- attention

// A cache of keys and values is read from memory, a head at a time, in pieces too short for the processor to foresee.
template <typename Number>
RLHF_INLINE void Prefetch(const Number* numbers, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(Number))) __builtin_prefetch(numbers + i);
}

// scores[p] = query · key p for p < count, sixteen keys at a time; the last ones of a group of 16 repeat the last key.
template <typename Number>
RLHF_INLINE void Products(const float* query, const Number* keys, int64_t stride, int64_t count, int64_t dim,
                          float* scores) {
  for (int64_t p = 0; p < count; p += kLanes) {
    const float* left[1] = {query};
    const Number* right[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      right[i] = keys + (p + i < count ? p + i : count - 1) * stride;
      Prefetch(right[i] + kLanes * stride, dim);
    }
    Store(scores + p, Dot16<1, kLanes>(left, right, dim));
  }
}

// Turns scores into exp(score − max), beyond count into 0; returns their sum. `capped` keeps the scores before that.
RLHF_INLINE float Exponentials(const AttentionShape& shape, int64_t count, float* scores, float* capped) {
  Vec highest = Splat(-__builtin_inff());
  for (int64_t p = 0; p < count; p += kLanes) {
    Vec s = Load(scores + p) * shape.scale;
    if (shape.softcap > 0) s = shape.softcap * Tanh(s / shape.softcap);
    if (capped != nullptr) Store(capped + p, s);
    if (count - p < kLanes) s = LoadPart(reinterpret_cast<const float*>(&s), count - p, -__builtin_inff());
    Store(scores + p, s);
    highest = Max(highest, s);
  }
  float most = highest[0];
  for (int64_t i = 1; i < kLanes; ++i) most = highest[i] > most ? highest[i] : most;
  Vec sum = {};
  for (int64_t p = 0; p < count; p += kLanes) {
    const Vec e = Exp(Load(scores + p) - most);
    Store(scores + p, e);
    sum += e;
  }
  return Sum(sum);
}

RLHF_INLINE void AddScaled(float weight, const float* x, int64_t dim, float* y) {
  for (int64_t i = 0; i < dim; ++i) y[i] += weight * x[i];
}

// Σ_p weights[p] · values[p], Vectors · 16 numbers of each value at once: the sums do not wait for one another.
template <int Vectors, typename Number>
RLHF_INLINE void WeighValues(const float* weights, const Number* values, int64_t stride, int64_t count, float inverse,
                             float* out) {
  Vec sums[Vectors] = {};
  for (int64_t p = 0; p < count; ++p) {
    Prefetch(values + (p + kLanes) * stride, Vectors * kLanes);
    for (int v = 0; v < Vectors; ++v) sums[v] += weights[p] * Load(values + p * stride + v * kLanes);
  }
  for (int v = 0; v < Vectors; ++v) Store(out + v * kLanes, sums[v] * inverse);
}

// One query against the keys it sees: the newest of `length` that the window holds.
template <typename Number>
RLHF_INLINE void AttendRow(const AttentionShape& shape, const float* query, const Number* keys, const Number* values,
                           int64_t stride, int64_t length, float* scratch, float* out) {
  const int64_t first = shape.window > 0 && length > shape.window ? length - shape.window : 0, count = length - first;
  Products(query, keys + first * stride, stride, count, shape.dim, scratch);
  const float inverse = 1.0F / Exponentials(shape, count, scratch, nullptr);
  const Number* value = values + first * stride;
  int64_t i = 0;
  for (; i + 4 * kLanes <= shape.dim; i += 4 * kLanes)
    WeighValues<4>(scratch, value + i, stride, count, inverse, out + i);
  for (; i + 3 * kLanes <= shape.dim; i += 3 * kLanes)
    WeighValues<3>(scratch, value + i, stride, count, inverse, out + i);
  for (; i + 2 * kLanes <= shape.dim; i += 2 * kLanes)
    WeighValues<2>(scratch, value + i, stride, count, inverse, out + i);
  for (; i + kLanes <= shape.dim; i += kLanes) WeighValues<1>(scratch, value + i, stride, count, inverse, out + i);
  for (; i < shape.dim; ++i) {
    float sum = 0;
    for (int64_t p = 0; p < count; ++p) sum = __builtin_fmaf(scratch[p], Wide(value[p * stride + i]), sum);
    out[i] = sum * inverse;
  }
}

template <typename Number>
void DecodeAttentionImpl(const AttentionShape& shape, const float* q, const Number* keys, const Number* values,
                         const int64_t* begins, const int64_t* rooms, const int64_t* lengths, int64_t batch,
                         float* scratch, float* out) {
  const int64_t group = shape.heads / shape.kv_heads;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      const int64_t base = begins[b] + h / group * rooms[b] * shape.dim;
      const int64_t at = (b * shape.heads + h) * shape.dim;
      AttendRow(shape, q + at, keys + base, values + base, shape.dim, lengths[b], scratch, out + at);
    }
  }
}

void CausalAttentionImpl(const AttentionShape& shape, const float* q, int64_t q_stride, const float* keys,
                         const float* values, int64_t kv_stride, int64_t count, int64_t length, int64_t kv_head,
                         float* scratch, float* out, int64_t out_stride) {
  const int64_t group = shape.heads / shape.kv_heads;
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    for (int64_t t = 0; t < count; ++t) {
      AttendRow(shape, q + t * q_stride + h * shape.dim, keys, values, kv_stride, length - count + t + 1, scratch,
                out + t * out_stride + h * shape.dim);
    }
  }
}

void CausalAttentionBackwardImpl(const AttentionShape& shape, const float* dout, int64_t out_stride, const float* q,
                                 int64_t q_stride, const float* keys, const float* values, int64_t kv_stride,
                                 int64_t length, int64_t kv_head, float* scratch, float* dq, float* dkeys,
                                 float* dvalues) {
  const int64_t group = shape.heads / shape.kv_heads, dim = shape.dim;
  float* const weights = scratch;
  float* const grads = scratch + (length + kLanes - 1) / kLanes * kLanes;
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    for (int64_t t = 0; t < length; ++t) {
      const int64_t first = shape.window > 0 && t + 1 > shape.window ? t + 1 - shape.window : 0, count = t + 1 - first;
      const float* query = q + t * q_stride + h * dim;
      const float* g = dout + t * out_stride + h * dim;
      float* dquery = dq + t * q_stride + h * dim;
      Products(query, keys + first * kv_stride, kv_stride, count, dim, weights);
      const float inverse = 1.0F / Exponentials(shape, count, weights, grads);
      // d softmax: p (dp − Σ p dp); then through the cap, whose derivative is 1 − (s / cap)².
      float mean = 0;
      for (int64_t p = 0; p < count; ++p) {
        weights[p] *= inverse;
        const float dp = SumOfProducts(g, values + (first + p) * kv_stride, nullptr, dim);
        const float ratio = shape.softcap > 0 ? grads[p] / shape.softcap : 0.0F;
        mean += weights[p] * dp;
        AddScaled(weights[p], g, dim, dvalues + (first + p) * kv_stride);
        grads[p] = dp;
        // The cap's factor rides on the weight's copy: both are needed once more below.
        if (shape.softcap > 0) weights[p] = (1.0F - ratio * ratio) < 0 ? 0.0F : weights[p] * (1.0F - ratio * ratio);
      }
      for (int64_t p = 0; p < count; ++p) {
        const float ds = weights[p] * (grads[p] - mean) * shape.scale;
        AddScaled(ds, keys + (first + p) * kv_stride, dim, dquery);
        AddScaled(ds, query, dim, dkeys + (first + p) * kv_stride);
      }
    }
  }
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
                                       .log_sum_exp = LogSumExpImpl,
                                       .log_softmax_backward = LogSoftmaxBackwardImpl,
                                       .entropy = EntropyImpl,
                                       .softcap = SoftcapImpl};

}  // namespace rlhf::model::kernels
