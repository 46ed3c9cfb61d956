#include "model/kernels/cpu_kernels.h"

#include <cmath>
#include <cstring>

// The compiler vectorises these loops; the options that let it reorder sums are set for this file only
// (CMakeLists.txt).
#define RLHF_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))

namespace rlhf::model::kernels {

RLHF_CLONES void RmsNorm(const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* y,
                         float* inverse) {
  for (int64_t t = 0; t < rows; ++t) {
    const float* in = x + t * width;
    float* out = y + t * width;
    float sum = 0;
    for (int64_t i = 0; i < width; ++i) sum += in[i] * in[i];
    const float scale = 1.0F / std::sqrt(sum / static_cast<float>(width) + eps);
    if (inverse != nullptr) inverse[t] = scale;
    for (int64_t i = 0; i < width; ++i) out[i] = in[i] * scale * weight[i];
  }
}

RLHF_CLONES void RmsNormBackward(const float* dy, const float* x, const float* weight, const float* inverse,
                                 int64_t rows, int64_t width, float* dx, float* dweight) {
  for (int64_t t = 0; t < rows; ++t) {
    const float* g = dy + t * width;
    const float* in = x + t * width;
    float* out = dx + t * width;
    const float scale = inverse[t];
    float dot = 0;
    for (int64_t i = 0; i < width; ++i) dot += g[i] * weight[i] * in[i];
    const float correction = dot * scale * scale * scale / static_cast<float>(width);
    for (int64_t i = 0; i < width; ++i) {
      dweight[i] += g[i] * in[i] * scale;
      out[i] = g[i] * weight[i] * scale - in[i] * correction;
    }
  }
}

RLHF_CLONES void Rotate(float* x, const int64_t* positions, const float* cos, const float* sin, int64_t rows,
                        int64_t heads, int64_t dim, int64_t row_stride, float direction) {
  const int64_t half = dim / 2;
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

RLHF_CLONES void SiluMul(const float* gate_up, int64_t rows, int64_t width, float* y) {
  for (int64_t t = 0; t < rows; ++t) {
    const float* gate = gate_up + t * 2 * width;
    const float* up = gate + width;
    float* out = y + t * width;
    for (int64_t i = 0; i < width; ++i) out[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
  }
}

RLHF_CLONES void SiluMulBackward(const float* dy, const float* gate_up, int64_t rows, int64_t width, float* dgate_up) {
  for (int64_t t = 0; t < rows; ++t) {
    const float* gate = gate_up + t * 2 * width;
    const float* up = gate + width;
    const float* g = dy + t * width;
    float* dgate = dgate_up + t * 2 * width;
    float* dup = dgate + width;
    for (int64_t i = 0; i < width; ++i) {
      const float sigmoid = 1.0F / (1.0F + std::exp(-gate[i]));
      const float silu = gate[i] * sigmoid;
      dup[i] = g[i] * silu;
      dgate[i] = g[i] * up[i] * (sigmoid + silu * (1.0F - sigmoid));
    }
  }
}

RLHF_CLONES void DecodeAttention(const float* q, const float* keys, const float* values, const int* slots,
                                 const int64_t* lengths, int64_t batch, int64_t heads, int64_t kv_heads,
                                 int64_t max_tokens, int64_t dim, float* scratch, float* out) {
  const int64_t group = heads / kv_heads;
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = lengths[b];
    for (int64_t h = 0; h < heads; ++h) {
      const float* query = q + (b * heads + h) * dim;
      const int64_t base = (static_cast<int64_t>(slots[b]) * kv_heads + h / group) * max_tokens * dim;
      const float* key = keys + base;
      const float* value = values + base;
      float* result = out + (b * heads + h) * dim;
      float highest = -INFINITY;
      for (int64_t p = 0; p < length; ++p) {
        float dot = 0;
        for (int64_t i = 0; i < dim; ++i) dot += query[i] * key[p * dim + i];
        scratch[p] = dot * scale;
        highest = scratch[p] > highest ? scratch[p] : highest;
      }
      float sum = 0;
      for (int64_t p = 0; p < length; ++p) {
        scratch[p] = std::exp(scratch[p] - highest);
        sum += scratch[p];
      }
      for (int64_t i = 0; i < dim; ++i) result[i] = 0;
      for (int64_t p = 0; p < length; ++p) {
        const float weight = scratch[p] / sum;
        for (int64_t i = 0; i < dim; ++i) result[i] += weight * value[p * dim + i];
      }
    }
  }
}

RLHF_CLONES float LogSumExp(const float* row, int64_t width, float inverse_temperature, float* exps, float* max_out) {
  float highest = row[0];
  for (int64_t i = 1; i < width; ++i) highest = row[i] > highest ? row[i] : highest;
  highest *= inverse_temperature;
  float sum = 0;
  if (exps != nullptr) {
    for (int64_t i = 0; i < width; ++i) {
      exps[i] = std::exp(row[i] * inverse_temperature - highest);
      sum += exps[i];
    }
  } else {
    for (int64_t i = 0; i < width; ++i) sum += std::exp(row[i] * inverse_temperature - highest);
  }
  if (max_out != nullptr) *max_out = highest;
  return highest + std::log(sum);
}

}  // namespace rlhf::model::kernels
