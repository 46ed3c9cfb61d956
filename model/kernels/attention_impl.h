// Causal attention of one instruction set; included by kernels_impl.h only. See cpu_kernels.h for what it promises.
//
// A query's scores are dot products in 16 partial sums and a tree; values are weighed in the order of their positions.
// Both are the same for one query of a decoding step and for the rows of a whole sequence, so the results are too. The
// backward pass computes the scores again by the faster product, in its order.
#pragma once

#include "model/kernels/product_impl.h"
#include "model/kernels/table.h"
#include "model/kernels/vector.h"

namespace rlhf::model::kernels {
namespace {

// ---- scores

// Rows × Columns = 16 dot products at once, each in the order of Sum.
template <int Rows, int Columns, typename Number>
RLHF_INLINE Vec Dot16(const float* const* a, const Number* const* b, int64_t inner) {
  Vec sums[16] = {};
  int64_t k = 0;
  for (; k + kLanes <= inner; k += kLanes) {
    Vec right[Columns];
#pragma GCC unroll 16
    for (int j = 0; j < Columns; ++j) right[j] = Load(b[j] + k);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vec left = Load(a[i] + k);
#pragma GCC unroll 16
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

// The first position that a query at `position` sees, and the multiple of 16 before it: from there its sums begin.
RLHF_INLINE int64_t FirstSeen(const AttentionShape& shape, int64_t position) {
  return shape.window > 0 && position >= shape.window ? position + 1 - shape.window : 0;
}
RLHF_INLINE int64_t FloorToLanes(int64_t position) {
  return position / kLanes * kLanes;
}

// Turns scores into exp(score − max), before `lead` and from `count` on to a multiple of 16 into 0; returns their sum.
// `capped` keeps the scores before that.
RLHF_INLINE float Exponentials(const AttentionShape& shape, int64_t lead, int64_t count, float* scores, float* capped) {
  const float nothing = -__builtin_inff();
  Vec highest = Splat(nothing);
  for (int64_t p = 0; p < count; p += kLanes) {
    Vec s = Load(scores + p) * shape.scale;
    if (shape.softcap > 0) s = shape.softcap * Tanh(s / shape.softcap);
    if (capped != nullptr) Store(capped + p, s);
    if (count - p < kLanes) s = LoadPart(reinterpret_cast<const float*>(&s), count - p, nothing);
    for (int64_t i = 0; p + i < lead && i < kLanes; ++i) s[i] = nothing;
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

// ---- one query and a cache

// What one lane of the vectors' sums does: fused where the processor has it. (The compiler would vectorize a loop of
// `+=` into products and a chain of additions.)
RLHF_INLINE float MultiplyAdd(float a, float b, float sum) {
#ifdef __FMA__
  return __builtin_fmaf(a, b, sum);
#else
  return a * b + sum;
#endif
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
  const int64_t seen = FirstSeen(shape, length - 1), first = FloorToLanes(seen), count = length - first;
  Products(query, keys + first * stride, stride, count, shape.dim, scratch);
  const float inverse = 1.0F / Exponentials(shape, seen - first, count, scratch, nullptr);
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
    for (int64_t p = 0; p < count; ++p) sum = MultiplyAdd(scratch[p], Wide(value[p * stride + i]), sum);
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

// ---- rows of a sequence

constexpr int kWeighRows = 4, kWeighVectors = kRegisterLanes == kLanes ? 4 : 1;  // of sums that stay in registers
constexpr int64_t kWeighTogether = 64;  // numbers to be weighed that stay in the first-level cache

// sums[i] += Σ_k w(i, k) · x[k], Vectors · 16 numbers of each. w(i, k) lies at weights + i · stride + k, with Across at
// weights + k · stride + i.
template <int Rows, int Vectors, bool Across>
RLHF_INLINE void WeighTile(const float* weights, int64_t stride, int64_t count, const float* x, int64_t width,
                           float* sums) {
  Vec s[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) s[i][v] = Load(sums + i * width + v * kLanes);
  }
  for (int64_t k = 0; k < count; ++k) {
    Vec right[Vectors];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) right[v] = Load(x + k * width + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vec left = Splat(Across ? weights[k * stride + i] : weights[i * stride + k]);
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) s[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) Store(sums + i * width + v * kLanes, s[i][v]);
  }
}
template <int Rows, bool Across>
RLHF_INLINE void WeighRows(const float* weights, int64_t stride, int64_t count, const float* x, int64_t width,
                           float* sums) {
  int64_t at = 0;
  if constexpr (kWeighVectors == 4) {
    for (; at + 4 * kLanes <= width; at += 4 * kLanes)
      WeighTile<Rows, 4, Across>(weights, stride, count, x + at, width, sums + at);
    for (; at + 3 * kLanes <= width; at += 3 * kLanes)
      WeighTile<Rows, 3, Across>(weights, stride, count, x + at, width, sums + at);
    for (; at + 2 * kLanes <= width; at += 2 * kLanes)
      WeighTile<Rows, 2, Across>(weights, stride, count, x + at, width, sums + at);
  }
  for (; at < width; at += kLanes) WeighTile<Rows, 1, Across>(weights, stride, count, x + at, width, sums + at);
}

// sums [rows, width] += w [rows, count] · x [count, width] for weights along a row, rows `stride` apart.
void Weigh(const float* weights, int64_t stride, int64_t rows, int64_t count, const float* x, int64_t width,
           float* sums) {
  for (int64_t k = 0; k < count; k += kWeighTogether) {
    const int64_t together = count - k < kWeighTogether ? count - k : kWeighTogether;
    int64_t i = 0;
    for (; i + kWeighRows <= rows; i += kWeighRows)
      WeighRows<kWeighRows, false>(weights + i * stride + k, stride, together, x + k * width, width, sums + i * width);
    for (; i < rows; ++i)
      WeighRows<1, false>(weights + i * stride + k, stride, together, x + k * width, width, sums + i * width);
  }
}

// sums [columns, width] += wᵀ · x [rows, width] for weights [rows, columns], of which row k's are zero beyond column
// diagonal + k.
void WeighAcross(const float* weights, int64_t stride, int64_t rows, int64_t columns, int64_t diagonal, const float* x,
                 int64_t width, float* sums) {
  for (int64_t j = 0; j < columns;) {
    const int64_t first = j > diagonal ? j - diagonal : 0;
    const float* const from = weights + first * stride + j;
    if (j + kWeighRows <= columns) {
      WeighRows<kWeighRows, true>(from, stride, rows - first, x + first * width, width, sums + j * width);
      j += kWeighRows;
    } else {
      WeighRows<1, true>(from, stride, rows - first, x + first * width, width, sums + j * width);
      ++j;
    }
  }
}

RLHF_INLINE void Fill(float* from, const float* to) {
  for (; from < to; ++from) *from = 0;
}

void CausalAttentionImpl(const AttentionShape& shape, const float* q, const float* keys, const float* values,
                         int64_t first, int64_t rows, float* scratch, float* out) {
  const int64_t width = RoundUpTo16(shape.dim), stride = AttentionStride(first + rows);
  constexpr int64_t kTogether = kAttentionRows;
  for (int64_t row = 0; row < rows; row += kTogether) {
    const int64_t count = rows - row < kTogether ? rows - row : kTogether, position = first + row;
    const int64_t begin = FloorToLanes(FirstSeen(shape, position)), end = position + count;
    for (int64_t p = begin; p < end; p += 4) {
      const float* right[4];
      for (int64_t j = 0; j < 4; ++j) right[j] = keys + (p + j < end ? p + j : end - 1) * width;
      for (int64_t i = p - position > 0 ? (p - position) / 4 * 4 : 0; i < count; i += 4) {
        const float* left[4];
        for (int64_t r = 0; r < 4; ++r) left[r] = q + (row + (i + r < count ? i + r : count - 1)) * width;
        const Vec scores = Dot16<4, 4>(left, right, width);
        for (int64_t r = 0; r < 4; ++r)
          __builtin_memcpy(scratch + (i + r) * stride + p - begin, reinterpret_cast<const float*>(&scores) + 4 * r, 16);
      }
    }
    float inverse[kTogether];
    float* const sums = out + row * width;
    for (int64_t i = 0; i < count; ++i) {
      float* const scores = scratch + i * stride;
      const int64_t seen = position + i + 1 - begin;
      inverse[i] = 1.0F / Exponentials(shape, FirstSeen(shape, position + i) - begin, seen, scores, nullptr);
      Fill(scores + seen, scores + end - begin);
    }
    Fill(sums, sums + count * width);
    Weigh(scratch, stride, count, end - begin, values + begin * width, width, sums);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < width; k += kLanes) Store(sums + i * width + k, Load(sums + i * width + k) * inverse[i]);
    }
  }
}

// Probabilities and the gradients of the scores of a row, from exp(score − max) with the sum 1 / inverse and the
// probabilities' gradients: p · (dp − Σ p · dp), through the cap, whose derivative is 1 − (s / cap)², and the scale.
RLHF_INLINE void ScoreGradients(const AttentionShape& shape, float inverse, int64_t count, const float* capped,
                                float* weights, float* grads) {
  Vec sums = {};
  for (int64_t p = 0; p < count; p += kLanes) {
    // What is beyond the row is not a number perhaps.
    const Vec dp = count - p < kLanes ? LoadPart(grads + p, count - p) : Load(grads + p);
    const Vec probability = Load(weights + p) * inverse;
    Store(weights + p, probability);
    Store(grads + p, dp);
    sums += probability * dp;
  }
  const float mean = Sum(sums);
  for (int64_t p = 0; p < count; p += kLanes) {
    Vec ds = Load(weights + p) * (Load(grads + p) - mean) * shape.scale;
    if (capped != nullptr) {
      const Vec ratio = Load(capped + p) / shape.softcap;
      ds *= Max(1.0F - ratio * ratio, Vec{});
    }
    Store(grads + p, ds);
  }
}

void CausalAttentionBackwardImpl(const AttentionShape& shape, const float* dout, const float* q, const float* keys,
                                 const float* values, int64_t length, float* scratch, float* dq, float* dkeys,
                                 float* dvalues) {
  const int64_t width = RoundUpTo16(shape.dim), stride = AttentionStride(length), together = GradientRows(length);
  float* const weights = scratch;
  float* const grads = weights + together * stride;
  float* const capped = shape.softcap > 0 ? grads + together * stride : nullptr;
  float* const packed_keys = scratch + 3 * together * stride;
  float* const packed_values = packed_keys + PackedSize(length, width);
  PackPanelsImpl(keys, width, 1, length, width, packed_keys);
  PackPanelsImpl(values, width, 1, length, width, packed_values);
  Fill(dq, dq + length * width);
  for (int64_t row = 0; row < length; row += together) {
    const int64_t count = length - row < together ? length - row : together, end = row + count;
    const int64_t begin = FirstSeen(shape, row) / kPanelColumns * kPanelColumns, seen = end - begin;
    ProductImpl(q + row * width, width, 1, packed_keys + begin * width, nullptr, count, seen, width, weights, stride,
                false);
    ProductImpl(dout + row * width, width, 1, packed_values + begin * width, nullptr, count, seen, width, grads, stride,
                false);
    for (int64_t i = 0; i < count; ++i) {
      float *const w = weights + i * stride, *const g = grads + i * stride;
      float* const c = capped == nullptr ? nullptr : capped + i * stride;
      const int64_t own = row + i + 1 - begin;
      const float sum = Exponentials(shape, FirstSeen(shape, row + i) - begin, own, w, c);
      ScoreGradients(shape, 1.0F / sum, own, c, w, g);
      Fill(w + own, w + seen);
      Fill(g + own, g + seen);
    }
    Weigh(grads, stride, count, seen, keys + begin * width, width, dq + row * width);
    WeighAcross(grads, stride, count, seen, row - begin, q + row * width, width, dkeys + begin * width);
    WeighAcross(weights, stride, count, seen, row - begin, dout + row * width, width, dvalues + begin * width);
  }
}

}  // namespace
}  // namespace rlhf::model::kernels
