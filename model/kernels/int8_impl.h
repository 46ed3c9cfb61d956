// Quantized rows and their products of one instruction set; included by kernels_impl.h only. See cpu_kernels.h for what
// they promise.
#include "model/kernels/table.h"
#include "model/kernels/vector.h"

namespace rlhf::model::kernels {
namespace {

void QuantizeRowsImpl(const float* x, int64_t x_stride, int64_t rows, int64_t width, int8_t* q, float* scales) {
  constexpr int32_t kInfinity = 0x7f800000;
  constexpr float kMagic = 12582912.0F;  // adding it rounds to a whole number in the low bits
  for (int64_t t = 0; t < rows; ++t) {
    const float* in = x + t * x_stride;
    int8_t* out = q + t * width;
    // As integers, magnitudes keep their order, and what is not finite comes last.
    int32_t highest = 0;
    for (int64_t i = 0; i < width; ++i) {
      const int32_t magnitude = __builtin_bit_cast(int32_t, in[i]) & 0x7fffffff;
      highest = magnitude > highest ? magnitude : highest;
    }
    const float largest = __builtin_bit_cast(float, highest);
    const bool finite = highest < kInfinity;
    if (!finite || largest < 1e-30F) {
      scales[t] = finite ? 0.0F : __builtin_nanf("");
      for (int64_t i = 0; i < width; ++i) out[i] = 0;
      continue;
    }
    scales[t] = largest / 127.0F;
    const float inverse = 127.0F / largest;
    for (int64_t i = 0; i < width; ++i) {
      const float shifted = in[i] * inverse + kMagic;
      out[i] = static_cast<int8_t>(__builtin_bit_cast(int32_t, shifted) - __builtin_bit_cast(int32_t, kMagic));
    }
  }
}

void Int8MatmulNTImpl(const int8_t* a, const int8_t* b, int64_t rows, int64_t columns, int64_t inner, int32_t* c) {
  for (int64_t j = 0; j < columns; ++j) {
    const int8_t* right = b + j * inner;
    for (int64_t i = 0; i < rows; ++i) {
      const int8_t* left = a + i * inner;
      int32_t sum = 0;
      for (int64_t k = 0; k < inner; ++k) sum += static_cast<int32_t>(left[k]) * static_cast<int32_t>(right[k]);
      c[i * columns + j] = sum;
    }
  }
}

void DequantizeImpl(const int32_t* c, const float* row_scales, const float* column_scales, const float* bias,
                    int64_t rows, int64_t columns, float* y) {
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t* in = c + i * columns;
    float* out = y + i * columns;
    const float scale = row_scales[i];
    if (bias == nullptr) {
      for (int64_t j = 0; j < columns; ++j) out[j] = static_cast<float>(in[j]) * (scale * column_scales[j]);
    } else {
      for (int64_t j = 0; j < columns; ++j) out[j] = static_cast<float>(in[j]) * (scale * column_scales[j]) + bias[j];
    }
  }
}

}  // namespace
}  // namespace rlhf::model::kernels
