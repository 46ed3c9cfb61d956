// The float32 matrix product of one instruction set; included by kernels_impl.h only. See cpu_kernels.h for the order
// of its sums.
//
// A tile of kTileRows rows × a panel of columns stays in registers while k runs over a block: for each k one load of
// the panel's 32 numbers and one broadcast a row. A block of columns stays in the second-level cache while all rows
// pass.
#pragma once

#include "model/kernels/table.h"
#include "model/kernels/vector.h"

namespace rlhf::model::kernels {
namespace {

#if defined(__AVX512F__)
constexpr int kRegisterLanes = 16, kTileRows = 14;
#elif defined(__AVX2__)
constexpr int kRegisterLanes = 8, kTileRows = 3;
#else
constexpr int kRegisterLanes = 4, kTileRows = 1;
#endif
constexpr int kPanelRegisters = static_cast<int>(kPanelColumns) / kRegisterLanes;
constexpr int64_t kBlockNumbers = 131072;  // of packed columns that stay in the second-level cache: 512 KB

using Register = float __attribute__((vector_size(kRegisterLanes * 4)));
struct __attribute__((packed, aligned(4), may_alias)) UnalignedRegister {
  Register v;
};

// Where a tile's results go: added to what is there, and the bias to that.
struct TileTarget {
  float* c;
  int64_t stride, columns;
  bool add;
  const float* bias;
};

// The last columns of a product, of which the tile has more than there are.
inline void StoreColumns(const float* part, int rows, const TileTarget& to) {
  for (int i = 0; i < rows; ++i) {
    float* const row = to.c + i * to.stride;
    for (int64_t j = 0; j < to.columns; ++j) {
      float sum = part[i * kPanelColumns + j];
      if (to.add) sum = row[j] + sum;
      if (to.bias != nullptr) sum += to.bias[j];
      row[j] = sum;
    }
  }
}

template <int Rows>
RLHF_INLINE void StoreTile(const Register (&sums)[Rows][kPanelRegisters], const TileTarget& to) {
  float part[Rows * kPanelColumns];
  const bool whole = to.columns == kPanelColumns;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    float* const row = whole ? to.c + i * to.stride : part + i * kPanelColumns;
#pragma GCC unroll 16
    for (int v = 0; v < kPanelRegisters; ++v) {
      auto* const at = reinterpret_cast<UnalignedRegister*>(row + v * kRegisterLanes);
      Register sum = sums[i][v];
      if (whole && to.add) sum = at->v + sum;
      if (whole && to.bias != nullptr)
        sum += reinterpret_cast<const UnalignedRegister*>(to.bias + v * kRegisterLanes)->v;
      at->v = sum;
    }
  }
  if (!whole) StoreColumns(part, Rows, to);
}

// Where a tile's left side lies: row i's number k at a + i * stride + k, or with Across at a + k * Rows + i.
template <int Rows, bool Across>
void ProductTile(const float* a, int64_t stride, const float* panel, int64_t count, const TileTarget& to) {
  Register sums[Rows][kPanelRegisters] = {};
  for (int64_t k = 0; k < count; ++k) {
    Register right[kPanelRegisters];
#pragma GCC unroll 16
    for (int v = 0; v < kPanelRegisters; ++v)
      right[v] = reinterpret_cast<const UnalignedRegister*>(panel + k * kPanelColumns + v * kRegisterLanes)->v;
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Register left = (Across ? a[k * Rows + i] : a[i * stride + k]) - Register{};  // 0 + x would be an addition
#pragma GCC unroll 16
      for (int v = 0; v < kPanelRegisters; ++v) sums[i][v] += left * right[v];
    }
  }
  StoreTile<Rows>(sums, to);
}

// Copies a tile's left side as Across has it.
template <int Rows>
void CopyAcross(const float* a, int64_t row_stride, int64_t inner_stride, int64_t count, float* to) {
  if (row_stride == 1) {
    for (int64_t k = 0; k < count; ++k) {
      __builtin_prefetch(a + (k + 24) * inner_stride);  // too far apart for the processor to foresee
      __builtin_memcpy(to + k * Rows, a + k * inner_stride, Rows * sizeof(float));
    }
    return;
  }
  for (int64_t k = 0; k < count; ++k) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) to[k * Rows + i] = a[i * row_stride + k * inner_stride];
  }
}

struct TileFns {
  decltype(&ProductTile<1, false>) along, across;
  decltype(&CopyAcross<1>) copy;
};
template <int... Rows>
TileFns ChooseTile(int64_t rows) {
  TileFns chosen{};
  ((rows == Rows ? void(chosen = {ProductTile<Rows, false>, ProductTile<Rows, true>, CopyAcross<Rows>}) : void()), ...);
  return chosen;
}
TileFns TileOf(int64_t rows) {
#if defined(__AVX512F__)
  return ChooseTile<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>(rows);
#elif defined(__AVX2__)
  return ChooseTile<1, 2, 3>(rows);
#else
  return ChooseTile<1>(rows);
#endif
}

void ProductImpl(const float* a, int64_t row_stride, int64_t inner_stride, const float* packed, const float* bias,
                 int64_t rows, int64_t columns, int64_t inner, float* c, int64_t c_stride, bool add) {
  float copy[kTileRows * kProductBlock];
  const int64_t panels = PanelsOf(columns), tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t depth = inner < kProductBlock ? inner : kProductBlock;
  int64_t together = kBlockNumbers / (kPanelColumns * (depth > 0 ? depth : 1));
  together = together < 1 ? 1 : together;
  // Rows a multiple of 4 KB apart would share a few lines of the first-level cache.
  const bool copied = inner_stride != 1 || (rows > 1 && row_stride % 1024 == 0 && panels > 2);
  for (int64_t first = 0; first < panels; first += together) {
    const int64_t last = first + together < panels ? first + together : panels;
    // A product over nothing is 0 (and the bias): one empty block.
    for (int64_t k = 0; k == 0 || k < inner; k += kProductBlock) {
      const int64_t count = inner - k < kProductBlock ? inner - k : kProductBlock;
      const bool final = k + count >= inner;
      for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
        const int64_t height = rows / tiles + (tile < rows % tiles ? 1 : 0);
        const TileFns fns = TileOf(height);
        const float* left = a + row * row_stride + k * inner_stride;
        if (copied) {
          fns.copy(left, row_stride, inner_stride, count, copy);
          left = copy;
        }
        const auto product = copied ? fns.across : fns.along;
        for (int64_t panel = first; panel < last; ++panel) {
          const int64_t column = panel * kPanelColumns;
          const int64_t width = columns - column < kPanelColumns ? columns - column : kPanelColumns;
          product(left, row_stride, packed + panel * kPanelColumns * inner + k * kPanelColumns, count,
                  {c + row * c_stride + column, c_stride, width, add || k > 0,
                   final && bias != nullptr ? bias + column : nullptr});
        }
        row += height;
      }
    }
  }
}

// Lane i of out[j] is lane j of in[i].
RLHF_INLINE void Transpose16(Vec (&rows)[kLanes]) {
  // Log2(16) rounds of interleaving row i with row i + 8.
  const IntVec low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
  for (int round = 0; round < 4; ++round) {
    Vec next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + 8], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + 8], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = next[i];
  }
}

void PackPanelsImpl(const float* b, int64_t column_stride, int64_t inner_stride, int64_t columns, int64_t inner,
                    float* packed) {
  for (int64_t column = 0; column < columns; column += kPanelColumns) {
    const int64_t width = columns - column < kPanelColumns ? columns - column : kPanelColumns;
    const float* from = b + column * column_stride;
    float* const to = packed + column * inner;
    int64_t k = 0;
    if (width == kPanelColumns && inner_stride == 1) {
      for (; k + kLanes <= inner; k += kLanes) {
        for (int64_t half = 0; half < kPanelColumns; half += kLanes) {
          Vec block[kLanes];
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) block[i] = Load(from + (half + i) * column_stride + k);
          Transpose16(block);
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) Store(to + (k + i) * kPanelColumns + half, block[i]);
        }
      }
    }
    for (; k < inner; ++k) {
      const float* row = from + k * inner_stride;
      float* const out = to + k * kPanelColumns;
      if (column_stride == 1 && width == kPanelColumns) {
        Store(out, Load(row));
        Store(out + kLanes, Load(row + kLanes));
        continue;
      }
      for (int64_t j = 0; j < kPanelColumns; ++j) out[j] = j < width ? row[j * column_stride] : 0.0F;
    }
  }
}

}  // namespace
}  // namespace rlhf::model::kernels
