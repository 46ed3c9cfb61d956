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

// The multiple of 16 before the first position that is seen: from there sums begin.
RLHF_INLINE int64_t FloorToLanes(int64_t position) {
  return position / kLanes * kLanes;
}

// Turns scores into exp(score − max), before `lead` and from `count` on to a multiple of 16 into 0; returns their sum.
// `capped` keeps the scores before that.
float AttentionWeightsImpl(const AttentionShape& shape, int64_t lead, int64_t count, float* scores, float* capped) {
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

// The keys or values of a head, [count, dim] without gaps, and what is read after them. A cache is read from memory, in
// pieces too short for the processor to foresee: while a row is computed, one `ahead` of it is fetched into the
// second-level cache.
template <typename Number>
struct CachedRows {
  const Number* rows;
  int64_t count, dim;
  const Number* next;  // null: nothing
  int64_t ahead;

  CachedRows(const Number* rows, int64_t count, int64_t dim, const Number* next)
      : rows(rows), count(count), dim(dim), next(next) {
    constexpr int64_t kNumbers = 65536 / sizeof(Number);
    ahead = count * dim < kNumbers ? count : kNumbers / dim;
  }
  RLHF_INLINE_MEMBER const Number* Row(int64_t p) const { return rows + p * dim; }
  RLHF_INLINE_MEMBER void FetchAhead(int64_t p, int64_t together) const {
    const int64_t later = p + ahead;
    if (later >= count && next == nullptr) return;
    const Number* const from = later < count ? Row(later) : next + (later - count) * dim;
    for (int64_t i = 0; i < together * dim; i += 64 / static_cast<int64_t>(sizeof(Number)))
      __builtin_prefetch(from + i, 0, 2);
  }
};

// scores[p] = query · key p, sixteen keys at a time; the last ones of a group of 16 repeat the last key.
template <typename Number>
RLHF_INLINE void Products(const float* query, const CachedRows<Number>& keys, float* scores) {
  for (int64_t p = 0; p < keys.count; p += kLanes) {
    keys.FetchAhead(p, kLanes);
    const float* left[1] = {query};
    const Number* right[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) right[i] = keys.Row(p + i < keys.count ? p + i : keys.count - 1);
    Store(scores + p, Dot16<1, kLanes>(left, right, keys.dim));
  }
}

// What one lane of the vectors' sums does: fused where the processor has it. (The compiler would vectorize a loop of
// `+=` into products and a chain of additions.)
RLHF_INLINE float MultiplyAdd(float a, float b, float sum) {
#ifdef __FMA__
  return __builtin_fmaf(a, b, sum);
#else
  return a * b + sum;
#endif
}

// Σ_p weights[p] · value p, Vectors · 16 numbers of each from `at` on: the sums do not wait for one another.
template <int Vectors, typename Number>
RLHF_INLINE void WeighValues(const float* weights, const CachedRows<Number>& values, int64_t at, float inverse,
                             float* out) {
  Vec sums[Vectors] = {};
  for (int64_t p = 0; p < values.count; ++p) {
    if (at == 0) values.FetchAhead(p, 1);
    for (int v = 0; v < Vectors; ++v) sums[v] += weights[p] * Load(values.Row(p) + at + v * kLanes);
  }
  for (int v = 0; v < Vectors; ++v) Store(out + at + v * kLanes, sums[v] * inverse);
}

// One query against keys of which it does not see the first `lead`.
template <typename Number>
RLHF_INLINE void AttendRow(const AttentionShape& shape, const float* query, const CachedRows<Number>& keys,
                           const CachedRows<Number>& values, int64_t lead, float* scratch, float* out) {
  Products(query, keys, scratch);
  const float inverse = 1.0F / AttentionWeightsImpl(shape, lead, keys.count, scratch, nullptr);
  int64_t i = 0;
  for (; i + 4 * kLanes <= shape.dim; i += 4 * kLanes) WeighValues<4>(scratch, values, i, inverse, out);
  for (; i + 3 * kLanes <= shape.dim; i += 3 * kLanes) WeighValues<3>(scratch, values, i, inverse, out);
  for (; i + 2 * kLanes <= shape.dim; i += 2 * kLanes) WeighValues<2>(scratch, values, i, inverse, out);
  for (; i + kLanes <= shape.dim; i += kLanes) WeighValues<1>(scratch, values, i, inverse, out);
  for (; i < shape.dim; ++i) {
    float sum = 0;
    for (int64_t p = 0; p < values.count; ++p) sum = MultiplyAdd(scratch[p], Wide(values.Row(p)[i]), sum);
    out[i] = sum * inverse;
  }
}

template <typename Number>
void DecodeAttentionImpl(const AttentionShape& shape, const CachedQuery* queries, int64_t count, const Number* keys,
                         const Number* values, float* scratch) {
  const int64_t group = shape.heads / shape.kv_heads, dim = shape.dim;
  // The multiple of 16 from which sums begin, and where it lies.
  const auto first = [&](const CachedQuery& query) { return FloorToLanes(FirstSeen(shape, query.length - 1)); };
  const auto begin = [&](const CachedQuery& query, int64_t kv_head) {
    return query.begin + (kv_head * query.room + first(query)) * dim;
  };
  for (int64_t i = 0; i < count; ++i) {
    const CachedQuery& query = queries[i];
    const int64_t seen = query.length - first(query), lead = FirstSeen(shape, query.length - 1) - first(query);
    for (int64_t h = 0; h < shape.heads; ++h) {
      const int64_t at = begin(query, h / group);
      // The heads of a group read the same, which is in the cache by then if it has room.
      const bool stays = 2 * seen * dim * static_cast<int64_t>(sizeof(Number)) <= 524288;
      const bool fetched = stays && h % group > 0;
      const Number* after = nullptr;
      if (h % group + 1 < group) {
        after = stays ? nullptr : keys + at;
      } else if (h + 1 < shape.heads) {
        after = keys + begin(query, h / group + 1);
      } else if (i + 1 < count) {
        after = keys + begin(queries[i + 1], 0);
      }
      AttendRow(shape, query.q + h * dim, CachedRows<Number>{keys + at, seen, dim, fetched ? nullptr : values + at},
                CachedRows<Number>{values + at, seen, dim, after}, lead, scratch, query.out + h * dim);
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
      inverse[i] = 1.0F / AttentionWeightsImpl(shape, FirstSeen(shape, position + i) - begin, seen, scores, nullptr);
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
void ScoreGradientsImpl(const AttentionShape& shape, float inverse, int64_t count, const float* capped, float* weights,
                        float* grads) {
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
      const float sum = AttentionWeightsImpl(shape, FirstSeen(shape, row + i) - begin, own, w, c);
      ScoreGradientsImpl(shape, 1.0F / sum, own, c, w, g);
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
