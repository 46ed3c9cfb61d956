// Compiled for AVX-512 with its instructions for dot products of bfloat16 and int8; called only where they are.
#include <immintrin.h>

#include "model/kernels/cpu_kernels.h"

namespace rlhf::model::kernels {
namespace {

constexpr int kTileRows = 14, kVectors = 2;
constexpr int64_t kBlockWords = 131072;  // of packed columns that stay in the second-level cache: 512 KB
constexpr int64_t kPairBlock = kBf16Block / 2;

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

// What becomes of sixteen sums of a row.
struct FloatResults {
  float* c;
  int64_t stride;
  const float* bias;
  bool add;
  __m512 Of(int64_t row, int64_t column, __mmask16 there, __m512 sum) const {
    if (add) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(there, c + row * stride + column), sum);
    return bias == nullptr ? sum : _mm512_add_ps(sum, _mm512_maskz_loadu_ps(there, bias + column));
  }
  void Put(int64_t row, int64_t column, __mmask16 there, __m512 sum) const {
    _mm512_mask_storeu_ps(c + row * stride + column, there, Of(row, column, there, sum));
  }
};
struct RoundedResults {
  FloatResults before;  // what is added; not stored
  uint16_t* c;
  int64_t stride;
  void Put(int64_t row, int64_t column, __mmask16 there, __m512 sum) const {
    const auto rounded = (__m256i)_mm512_cvtneps_pbh(before.Of(row, column, there, sum));
    uint16_t* const to = c + row * stride + column;
    if (there == 0xffff) {  // a masked store of 16 bits is slow
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded);
    } else {
      _mm256_mask_storeu_epi16(to, there, rounded);
    }
  }
};
// As Dequantize: sum · (row's scale · column's scale) + bias.
struct ScaledResults {
  const int32_t* offsets;  // by column: what the left side's offset of 128 adds to each sum
  const float *row_scales, *column_scales, *bias;
  float* c;
  int64_t stride;
  void Put(int64_t row, int64_t column, __mmask16 there, __m512i sum) const {
    const __m512i exact = _mm512_sub_epi32(sum, _mm512_maskz_loadu_epi32(there, offsets + column));
    const __m512 scale =
        _mm512_mul_ps(_mm512_set1_ps(row_scales[row]), _mm512_maskz_loadu_ps(there, column_scales + column));
    const __m512 result = bias == nullptr ? _mm512_mul_ps(_mm512_cvtepi32_ps(exact), scale)
                                          : _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale,
                                                            _mm512_maskz_loadu_ps(there, bias + column));
    _mm512_mask_storeu_ps(c + row * stride + column, there, result);
  }
};

// Where a tile's left side lies: row i's word k at a + i * stride + k, or with Across at a + k * Rows + i.
template <typename Kind, typename Results, int Rows, bool Across>
void Tile(const uint32_t* a, int64_t stride, const uint32_t* panel, int64_t words, const Results& results, int64_t row,
          int64_t column, int64_t columns) {
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
      const uint32_t left = Across ? a[k * Rows + i] : a[i * stride + k];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[i][v] = Kind::Add(sums[i][v], left, right[v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const int64_t more = columns - column - 16 * v;
      const __mmask16 there = more >= 16 ? 0xffff : more <= 0 ? 0 : static_cast<__mmask16>((1U << more) - 1);
      results.Put(row + i, column + 16 * v, there, sums[i][v]);
    }
  }
}

template <typename Kind, typename Results, bool Across, int... Rows>
auto TileOf(int64_t rows) {
  decltype(&Tile<Kind, Results, 1, Across>) chosen = nullptr;
  ((rows == Rows ? void(chosen = Tile<Kind, Results, Rows, Across>) : void()), ...);
  return chosen;
}

// Sixteen numbers of a row and of the next made into words; what is not `there` is 0.
inline void PutPairs(const uint16_t* first, const uint16_t* second, __mmask16 first_there, __mmask16 second_there,
                     uint32_t* to) {
  __m256i low, high;
  if (first_there == 0xffff && second_there == 0xffff) {
    low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
    high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
  } else {
    low = _mm256_maskz_loadu_epi16(first_there, first);
    high = _mm256_maskz_loadu_epi16(second_there, second);
  }
  _mm512_storeu_si512(to,
                      _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
}

// The left side as it lies.
struct WordRows {
  static constexpr bool kAcross = false;
  const uint32_t* a;
  int64_t stride;
  const uint32_t* Take(int64_t row, int64_t /*rows*/) const { return a + row * stride; }
};
// The left side's rows copied, a tile at a time, to where words can be read and lie well in the first-level cache.
struct CopiedRows {
  static constexpr bool kAcross = false;
  static constexpr int64_t stride = kPairBlock + 16;
  const uint16_t* a;
  int64_t row_stride, inner;
  uint32_t* memory;

  const uint32_t* Take(int64_t row, int64_t rows) const {
    if (inner == 0) return memory;  // nothing lies anywhere
    for (int64_t i = 0; i < rows; ++i) {
      uint32_t* const to = memory + i * stride;
      if (inner % 2 != 0) to[inner / 2] = 0;
      __builtin_memcpy(to, a + (row + i) * row_stride, static_cast<size_t>(inner) * sizeof(uint16_t));
    }
    return memory;
  }
};
// The left side made into pairs, a tile at a time: number k of row i lies at a + i * row_stride + k * inner_stride.
struct PairedRows {
  static constexpr bool kAcross = true;
  static constexpr int64_t stride = 0;
  const uint16_t* a;
  int64_t row_stride, inner_stride, inner;
  uint32_t* memory;  // has room for 16 words more than a tile

  const uint32_t* Take(int64_t row, int64_t rows) const {
    const uint16_t* const from = a + row * row_stride;
    for (int64_t k = 0; k < inner; k += 2) {
      uint32_t* const to = memory + k / 2 * rows;
      const bool whole = k + 1 < inner;
      if (row_stride == 1) {
        const uint16_t* const at = from + k * inner_stride;
        __builtin_prefetch(at + 160 * inner_stride, 0, 2);  // too far apart for the processor to foresee
        __builtin_prefetch(at + 161 * inner_stride, 0, 2);
        // Sixteen numbers a row, but for the last rows, beyond which nothing may lie.
        const bool more = (k + 1) * inner_stride + 16 <= (inner - 1) * inner_stride + rows;
        const auto there = static_cast<__mmask16>(more ? 0xffff : (1U << rows) - 1);
        PutPairs(at, at + inner_stride, there, whole ? there : 0, to);
        continue;
      }
      for (int64_t i = 0; i < rows; ++i) {
        const uint16_t* const at = from + i * row_stride + k * inner_stride;
        to[i] = at[0] | (whole ? static_cast<uint32_t>(at[inner_stride]) << 16 : 0U);
      }
    }
    return memory;
  }
};

// packed: at the first of `words`; its panels lie panel_words words of a column apart.
template <typename Kind, typename Left, typename Results>
void Product(const Left& left, const uint32_t* packed, int64_t panel_words, const Results& results, int64_t rows,
             int64_t columns, int64_t words) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  int64_t together = kBlockWords / (words > 0 ? words : 1) / kPanelColumns * kPanelColumns;
  together = together < kPanelColumns ? kPanelColumns : together;
  for (int64_t first = 0; first < columns; first += together) {
    const int64_t last = first + together < columns ? first + together : columns;
    for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
      const int64_t height = rows / tiles + (tile < rows % tiles ? 1 : 0);
      const auto fn = TileOf<Kind, Results, Left::kAcross, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>(height);
      const uint32_t* const a = left.Take(row, height);
      for (int64_t column = first; column < last; column += kPanelColumns)
        fn(a, left.stride, packed + column * panel_words, words, results, row, column, columns);
      row += height;
    }
  }
}

}  // namespace

void PackPairs(const uint16_t* b, int64_t column_stride, int64_t inner_stride, int64_t columns, int64_t inner,
               uint32_t* packed) {
  const int64_t words = (inner + 1) / 2;
  if (inner_stride == 1 && inner % 2 == 0 && column_stride % 2 == 0 && reinterpret_cast<uintptr_t>(b) % 4 == 0) {
    return PackPanels(reinterpret_cast<const float*>(b), column_stride / 2, 1, columns, words,
                      reinterpret_cast<float*>(packed));
  }
  for (int64_t k = 0; k < inner; k += 2) {
    const uint16_t* const from = b + k * inner_stride;
    const bool whole = k + 1 < inner;
    for (int64_t column = 0; column < columns; column += 16) {
      const int64_t width = columns - column < 16 ? columns - column : 16;
      uint32_t* const to =
          packed + column / kPanelColumns * kPanelColumns * words + k / 2 * kPanelColumns + column % kPanelColumns;
      if (column_stride == 1) {
        const auto there = static_cast<__mmask16>((1U << width) - 1);
        PutPairs(from + column, from + inner_stride + column, there, whole ? there : 0, to);
        continue;
      }
      for (int64_t j = 0; j < 16; ++j) {
        const uint16_t* const at = from + (column + j) * column_stride;
        to[j] = j >= width ? 0U : at[0] | (whole ? static_cast<uint32_t>(at[inner_stride]) << 16 : 0U);
      }
    }
    // The second half of a last panel that has fewer than 17 columns.
    const int64_t filled = (columns + 15) / 16 * 16;
    if (filled % kPanelColumns != 0) {
      _mm512_storeu_si512(packed + filled / kPanelColumns * kPanelColumns * words + k / 2 * kPanelColumns + 16,
                          _mm512_setzero_si512());
    }
  }
}

void Bf16Product(const uint16_t* a, int64_t row_stride, int64_t inner_stride, const uint32_t* packed,
                 int64_t column_words, const float* bias, int64_t rows, int64_t columns, int64_t inner,
                 const Bf16Target& to) {
  const int64_t words = (inner + 1) / 2;
  // Rows a multiple of 4 KB apart would share a few lines of the first-level cache.
  const bool as_it_lies = inner_stride == 1 && inner % 2 == 0 && row_stride % 2 == 0 &&
                          reinterpret_cast<uintptr_t>(a) % 4 == 0 &&
                          (row_stride % 2048 != 0 || rows == 1 || columns <= 2 * kPanelColumns);
  uint32_t memory[kTileRows * CopiedRows::stride];
  for (int64_t k = 0; k == 0 || k < words; k += kPairBlock) {
    const int64_t count = words - k < kPairBlock ? words - k : kPairBlock;
    const bool final = k + count >= words;
    const auto multiply = [&](const auto& left) {
      const FloatResults sums{to.sums, to.sums_stride, final ? bias : nullptr, to.add || k > 0};
      if (final && to.rounded != nullptr) {
        Product<Bf16Pairs>(left, packed + k * kPanelColumns, column_words,
                           RoundedResults{sums, to.rounded, to.rounded_stride}, rows, columns, count);
      } else {
        Product<Bf16Pairs>(left, packed + k * kPanelColumns, column_words, sums, rows, columns, count);
      }
    };
    const int64_t numbers = inner - 2 * k < 2 * count ? inner - 2 * k : 2 * count;
    if (as_it_lies) {
      multiply(WordRows{reinterpret_cast<const uint32_t*>(a) + k, row_stride / 2});
    } else if (inner_stride == 1) {
      multiply(CopiedRows{a + 2 * k, row_stride, numbers, memory});
    } else {
      multiply(PairedRows{a + 2 * k * inner_stride, row_stride, inner_stride, numbers, memory});
    }
  }
}

void Int8Product(const uint32_t* a, int64_t a_stride, const uint32_t* packed, const int32_t* offsets,
                 const float* row_scales, const float* column_scales, const float* bias, int64_t rows, int64_t columns,
                 int64_t words, float* c, int64_t c_stride) {
  Product<Int8Fours>(WordRows{a, a_stride}, packed, words,
                     ScaledResults{offsets, row_scales, column_scales, bias, c, c_stride}, rows, columns, words);
}

}  // namespace rlhf::model::kernels
