#include "model/bf16_attention.h"

#include <algorithm>
#include <utility>

#include "model/float_rows.h"

namespace rlhf::model {
namespace {

using kernels::AttentionShape;

// Rows of scores that are computed together, and what lies between two of them: numbers, not a multiple of 4 KB.
struct Block {
  int64_t rows, stride;
  explicit Block(int64_t length) : rows(kernels::GradientRows(length)), stride(kernels::AttentionStride(length)) {}
  int64_t size() const { return rows * stride; }
};

// What a block of rows from `position` on sees together: positions from `begin`, a multiple of a panel, to `end`.
struct Seen {
  int64_t begin, end, even;  // even: as many numbers, a whole number of pairs
  Seen(const AttentionShape& shape, int64_t position, int64_t count) : end(position + count) {
    begin = kernels::FirstSeen(shape, position) / kernels::kPanelColumns * kernels::kPanelColumns;
    even = (end - begin + 1) / 2 * 2;
  }
  int64_t count() const { return end - begin; }
};

int64_t WordsOf(int64_t numbers) {
  return (numbers + 1) / 2;
}

// Packed columns: the positions, each of `dim` numbers; or the numbers of a head, each of `rows` positions.
int64_t PositionsSize(int64_t rows, int64_t dim) {
  return kernels::PackedSize(rows, WordsOf(dim));
}
int64_t NumbersSize(int64_t rows, int64_t dim) {
  return kernels::PackedSize(dim, WordsOf(rows));
}
uint32_t* PackPositions(const Bf16Rows& x, int64_t rows, int64_t dim, float* memory) {
  auto* const packed = reinterpret_cast<uint32_t*>(memory);
  kernels::PackPairs(x.data, x.stride, 1, rows, dim, packed);
  return packed;
}
uint32_t* PackNumbers(const Bf16Rows& x, int64_t rows, int64_t dim, float* memory) {
  auto* const packed = reinterpret_cast<uint32_t*>(memory);
  kernels::PackPairs(x.data, 1, x.stride, dim, rows, packed);
  return packed;
}

// scores[i, p − begin] = x i · packed p for the rows of a block.
void Scores(const Bf16Rows& x, int64_t count, const uint32_t* positions, const Seen& seen, int64_t dim,
            const Block& block, float* scores) {
  const int64_t words = WordsOf(dim);
  kernels::Bf16Product(x.data, x.stride, 1, positions + seen.begin * words, words, nullptr, count, seen.count(), dim,
                       {.sums = scores, .sums_stride = block.stride});
}

// Rounds a row of which `own` numbers are there, the others up to `count` zero.
void Round(const float* row, int64_t own, int64_t count, uint16_t* to) {
  kernels::Narrow(row, own, to);
  std::fill(to + own, to + count, uint16_t{0});
}

// sums[i] = Σ_p weights[i, p − begin] · row p, for the rows of a block.
void Weigh(const uint16_t* weights, int64_t count, const uint32_t* numbers, int64_t length, const Seen& seen,
           int64_t dim, const Block& block, float* sums) {
  kernels::Bf16Product(weights, block.stride, 1, numbers + seen.begin / 2 * kernels::kPanelColumns, WordsOf(length),
                       nullptr, count, dim, seen.even, {.sums = sums, .sums_stride = dim});
}

// sums[p] += Σ_i weights[i, p − begin] · row i, for the positions that a block sees.
void WeighAcross(const uint16_t* weights, int64_t count, const uint32_t* numbers, const Seen& seen, int64_t dim,
                 const Block& block, float* sums, int64_t width) {
  kernels::Bf16Product(weights, 1, block.stride, numbers, WordsOf(count), nullptr, seen.count(), dim, count,
                       {.sums = sums + seen.begin * width, .sums_stride = width, .add = true});
}

}  // namespace

void Bf16AttendHead(const AttentionShape& shape, const Bf16Rows& q, const Bf16Rows& keys, const Bf16Rows& values,
                    int64_t first, int64_t rows, const Bf16Rows& out) {
  const int64_t length = first + rows, dim = shape.dim;
  const Block block(length);
  Scratch scratch({PositionsSize(length, dim), NumbersSize(length, dim), 2 * block.size(), block.rows * dim});
  const uint32_t* const packed_keys = PackPositions(keys, length, dim, scratch.Take(PositionsSize(length, dim)));
  const uint32_t* const packed_values = PackNumbers(values, length, dim, scratch.Take(NumbersSize(length, dim)));
  float* const scores = scratch.Take(block.size());
  auto* const weights = reinterpret_cast<uint16_t*>(scratch.Take(block.size()));
  float* const sums = scratch.Take(block.rows * dim);
  for (int64_t row = 0; row < rows; row += block.rows) {
    const int64_t count = std::min(block.rows, rows - row), position = first + row;
    const Seen seen(shape, position, count);
    Scores({q.Row(row), q.stride}, count, packed_keys, seen, dim, block, scores);
    float inverse[64];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t own = position + i + 1 - seen.begin;
      float* const w = scores + i * block.stride;
      inverse[i] = 1.0F / kernels::AttentionWeights(shape, kernels::FirstSeen(shape, position + i) - seen.begin, own, w,
                                                    /*capped=*/nullptr);
      Round(w, own, seen.even, weights + i * block.stride);
    }
    Weigh(weights, count, packed_values, length, seen, dim, block, sums);
    for (int64_t i = 0; i < count; ++i) {
      float* const sum = sums + i * dim;
      for (int64_t k = 0; k < dim; ++k) sum[k] *= inverse[i];
      kernels::Narrow(sum, dim, out.Row(row + i));
    }
  }
}

int64_t Bf16BackwardScratch(int64_t length, int64_t dim) {
  const Block block(length);
  return 2 * PositionsSize(length, dim) + NumbersSize(length, dim) + 2 * NumbersSize(block.rows, dim) +
         5 * block.size() + block.rows * dim;
}

void Bf16AttendHeadBackward(const AttentionShape& shape, const Bf16Rows& dout, const Bf16Rows& q, const Bf16Rows& keys,
                            const Bf16Rows& values, int64_t length, float* scratch, const Bf16Rows& dq, float* dkeys,
                            float* dvalues, int64_t width) {
  const int64_t dim = shape.dim;
  const Block block(length);
  const auto take = [&scratch](int64_t size) { return std::exchange(scratch, scratch + size); };
  const uint32_t* const packed_keys = PackPositions(keys, length, dim, take(PositionsSize(length, dim)));
  const uint32_t* const packed_values = PackPositions(values, length, dim, take(PositionsSize(length, dim)));
  const uint32_t* const key_numbers = PackNumbers(keys, length, dim, take(NumbersSize(length, dim)));
  float *const q_memory = take(NumbersSize(block.rows, dim)), *const dout_memory = take(NumbersSize(block.rows, dim));
  float *const scores = take(block.size()), *const slopes = take(block.size()), *const capped = take(block.size());
  auto* const weights = reinterpret_cast<uint16_t*>(take(block.size()));
  auto* const grads = reinterpret_cast<uint16_t*>(take(block.size()));
  float* const sums = take(block.rows * dim);
  for (int64_t row = 0; row < length; row += block.rows) {
    const int64_t count = std::min(block.rows, length - row);
    const Seen seen(shape, row, count);
    const Bf16Rows queries{q.Row(row), q.stride}, upstream{dout.Row(row), dout.stride};
    Scores(queries, count, packed_keys, seen, dim, block, scores);
    Scores(upstream, count, packed_values, seen, dim, block, slopes);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t own = row + i + 1 - seen.begin;
      float *const w = scores + i * block.stride, *const g = slopes + i * block.stride;
      float* const c = shape.softcap > 0 ? capped + i * block.stride : nullptr;
      const float sum = kernels::AttentionWeights(shape, kernels::FirstSeen(shape, row + i) - seen.begin, own, w, c);
      kernels::ScoreGradients(shape, 1.0F / sum, own, c, w, g);
      Round(w, own, seen.even, weights + i * block.stride);
      Round(g, own, seen.even, grads + i * block.stride);
    }
    Weigh(grads, count, key_numbers, length, seen, dim, block, sums);
    for (int64_t i = 0; i < count; ++i) kernels::Narrow(sums + i * dim, dim, dq.Row(row + i));
    WeighAcross(grads, count, PackNumbers(queries, count, dim, q_memory), seen, dim, block, dkeys, width);
    WeighAcross(weights, count, PackNumbers(upstream, count, dim, dout_memory), seen, dim, block, dvalues, width);
  }
}

}  // namespace rlhf::model
