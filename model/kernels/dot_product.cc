// Compiled for AVX-512 with its instructions for dot products of bfloat16 and int8; called only where they are.
#include <immintrin.h>

#include "model/kernels/cpu_kernels.h"

namespace rlhf::model::kernels {
namespace {

constexpr int kTileRows = 14, kVectors = 2;
constexpr int64_t kBlockWords = 131072;  // of packed columns that stay in the second-level cache: 512 KB

struct Bf16Pairs {
  using Sum = __m512;
  static Sum Zero() { return _mm512_setzero_ps(); }
  static Sum Add(Sum sum, uint32_t left, __m512i right) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(left)), (__m512bh)right);
  }
};
struct Int8Fours {
  using Sum = __m512i;
  static Sum Zero() { return _mm512_setzero_si512(); }
  static Sum Add(Sum sum, uint32_t left, __m512i right) {
    return _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(static_cast<int>(left)), right);
  }
};

struct FloatResults {
  const float* bias;
  __m512 operator()(int64_t /*row*/, int64_t column, __mmask16 there, __m512 sum) const {
    return bias == nullptr ? sum : _mm512_add_ps(sum, _mm512_maskz_loadu_ps(there, bias + column));
  }
};
// As Dequantize: sum · (row's scale · column's scale) + bias.
struct ScaledResults {
  const int32_t* offsets;  // by column: what the left side's offset of 128 adds to each sum
  const float *row_scales, *column_scales, *bias;
  __m512 operator()(int64_t row, int64_t column, __mmask16 there, __m512i sum) const {
    const __m512i exact = _mm512_sub_epi32(sum, _mm512_maskz_loadu_epi32(there, offsets + column));
    const __m512 scale =
        _mm512_mul_ps(_mm512_set1_ps(row_scales[row]), _mm512_maskz_loadu_ps(there, column_scales + column));
    if (bias == nullptr) return _mm512_mul_ps(_mm512_cvtepi32_ps(exact), scale);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale, _mm512_maskz_loadu_ps(there, bias + column));
  }
};

template <typename Kind, typename Results, int Rows>
void Tile(const uint32_t* a, int64_t a_stride, const uint32_t* panel, int64_t words, const Results& results,
          int64_t row, int64_t column, int64_t columns, float* c, int64_t c_stride) {
  typename Kind::Sum sums[Rows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    for (int v = 0; v < kVectors; ++v) sums[i][v] = Kind::Zero();
  }
  for (int64_t k = 0; k < words; ++k) {
    const __m512i right[kVectors] = {_mm512_loadu_si512(panel + k * kPanelColumns),
                                     _mm512_loadu_si512(panel + k * kPanelColumns + 16)};
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[i][v] = Kind::Add(sums[i][v], a[i * a_stride + k], right[v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const int64_t left = columns - column - 16 * v;
      const __mmask16 there = left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1U << left) - 1);
      _mm512_mask_storeu_ps(c + (row + i) * c_stride + column + 16 * v, there,
                            results(row + i, column + 16 * v, there, sums[i][v]));
    }
  }
}

template <typename Kind, typename Results, int... Rows>
auto TileOf(int64_t rows) {
  decltype(&Tile<Kind, Results, 1>) chosen = nullptr;
  ((rows == Rows ? void(chosen = Tile<Kind, Results, Rows>) : void()), ...);
  return chosen;
}

template <typename Kind, typename Results>
void Product(const uint32_t* a, int64_t a_stride, const uint32_t* packed, const Results& results, int64_t rows,
             int64_t columns, int64_t words, float* c, int64_t c_stride) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  int64_t together = kBlockWords / (words > 0 ? words : 1) / kPanelColumns * kPanelColumns;
  together = together < kPanelColumns ? kPanelColumns : together;
  for (int64_t first = 0; first < columns; first += together) {
    const int64_t last = first + together < columns ? first + together : columns;
    for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
      const int64_t height = rows / tiles + (tile < rows % tiles ? 1 : 0);
      const auto fn = TileOf<Kind, Results, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>(height);
      for (int64_t column = first; column < last; column += kPanelColumns)
        fn(a + row * a_stride, a_stride, packed + column * words, words, results, row, column, columns, c, c_stride);
      row += height;
    }
  }
}

}  // namespace

void Bf16Product(const uint32_t* a, int64_t a_stride, const uint32_t* packed, const float* bias, int64_t rows,
                 int64_t columns, int64_t words, float* c, int64_t c_stride) {
  Product<Bf16Pairs>(a, a_stride, packed, FloatResults{bias}, rows, columns, words, c, c_stride);
}

void Int8Product(const uint32_t* a, int64_t a_stride, const uint32_t* packed, const int32_t* offsets,
                 const float* row_scales, const float* column_scales, const float* bias, int64_t rows, int64_t columns,
                 int64_t words, float* c, int64_t c_stride) {
  Product<Int8Fours>(a, a_stride, packed, ScaledResults{offsets, row_scales, column_scales, bias}, rows, columns, words,
                     c, c_stride);
}

}  // namespace rlhf::model::kernels
