// Attention of one query token over a part of its keys, and the merging of parts: flash-decoding (Dao et al. 2023).
//
// A part of the keys gives, for each query head, the highest score m, the sum of exp(s − m) and the values weighted by
// those; two parts are merged by scaling both to the higher m. All arithmetic is float32.
#pragma once

#include <cmath>
#include <cstdint>

#include "model/kernels/cpu_kernels.h"
#include "model/kernels/host_device.h"

namespace rlhf::model::kernels {

// What exp(score − highest) of a part counts for after the highest score has become `higher`. A part without keys
// has −infinity, and counts for nothing.
RLHF_HOST_DEVICE inline float PartScale(float highest, float higher) {
  return highest == -INFINITY ? 0.0F : expf(highest - higher);
}

RLHF_HOST_DEVICE inline float CappedScore(float product, float scale, float softcap) {
  const float score = product * scale;
  return softcap > 0 ? softcap * tanhf(score / softcap) : score;
}

// One thread's share of kHeads query heads: kPer numbers of each head's dimension.
template <int kHeads, int kPer>
struct SoftmaxPartial {
  float highest[kHeads];
  float sum[kHeads];
  float weighted[kHeads][kPer];

  RLHF_HOST_DEVICE SoftmaxPartial() {
    for (int h = 0; h < kHeads; ++h) {
      highest[h] = -INFINITY;
      sum[h] = 0;
      for (int e = 0; e < kPer; ++e) weighted[h][e] = 0;
    }
  }
};

// The numbers of a row of `dim` that a lane holds: kWhole, where dim = lanes · kPer: kPer neighbours; else those
// `lanes` apart, with zeros beyond the end.
template <class Lanes, class T, int kPer, bool kWhole>
RLHF_HOST_DEVICE void LoadRow(const Lanes& lanes, const T* row, int dim, float* out) {
  if constexpr (kWhole) {
    // One aligned read: rows begin at multiples of their size.
    struct alignas(sizeof(T) * kPer) Pack {
      T values[kPer];
    };
    const Pack pack = reinterpret_cast<const Pack*>(row)[lanes.lane()];
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int e = 0; e < kPer; ++e) out[e] = static_cast<float>(pack.values[e]);
  } else {
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int e = 0; e < kPer; ++e) {
      const int at = static_cast<int>(lanes.lane()) + e * static_cast<int>(lanes.size());
      out[e] = at < dim ? static_cast<float>(row[at]) : 0.0F;
    }
  }
}

// Where a lane's e-th number lies in its row; dim or beyond: nowhere.
template <class Lanes, int kPer, bool kWhole>
RLHF_HOST_DEVICE int PlaceInRow(const Lanes& lanes, int e) {
  return kWhole ? static_cast<int>(lanes.lane()) * kPer + e
                : static_cast<int>(lanes.lane()) + e * static_cast<int>(lanes.size());
}

// Keys first, first + 1, … in runs of kRun that begin `stride` apart, below `last`, into the partial. q: the lane's
// share of each head's query. Lanes: lane(), size(), and Sum(float) over them.
template <class Lanes, class T, int kHeads, int kPer, bool kWhole>
RLHF_HOST_DEVICE void AttendKeys(const Lanes& lanes, const float (*q)[kPer], const T* keys, const T* values, int dim,
                                 int64_t first, int64_t last, int64_t stride, float scale, float softcap,
                                 SoftmaxPartial<kHeads, kPer>* part) {
  constexpr int kRun = 4;  // keys whose loads are under way together
  for (int64_t begin = first; begin < last; begin += stride) {
    float key[kRun][kPer];
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int k = 0; k < kRun; ++k) {
      const int64_t at = begin + k < last ? begin + k : last - 1;
      LoadRow<Lanes, T, kPer, kWhole>(lanes, keys + at * dim, dim, key[k]);
    }
    float score[kHeads][kRun];
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int h = 0; h < kHeads; ++h) {
#ifdef __CUDACC__
#pragma unroll
#endif
      for (int k = 0; k < kRun; ++k) {
        float product = 0;
        for (int e = 0; e < kPer; ++e) product += q[h][e] * key[k][e];
        product = lanes.Sum(product);
        score[h][k] = begin + k < last ? CappedScore(product, scale, softcap) : -INFINITY;
      }
    }
    // The keys' registers hold the values now.
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int k = 0; k < kRun; ++k) {
      const int64_t at = begin + k < last ? begin + k : last - 1;
      LoadRow<Lanes, T, kPer, kWhole>(lanes, values + at * dim, dim, key[k]);
    }
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int h = 0; h < kHeads; ++h) {
      float higher = part->highest[h];
      for (int k = 0; k < kRun; ++k) higher = score[h][k] > higher ? score[h][k] : higher;
      const float old = PartScale(part->highest[h], higher);
      float weights[kRun], sum = part->sum[h] * old;
      for (int k = 0; k < kRun; ++k) {
        weights[k] = PartScale(score[h][k], higher);
        sum += weights[k];
      }
      for (int e = 0; e < kPer; ++e) {
        float weighted = part->weighted[h][e] * old;
        for (int k = 0; k < kRun; ++k) weighted += weights[k] * key[k][e];
        part->weighted[h][e] = weighted;
      }
      part->highest[h] = higher;
      part->sum[h] = sum;
    }
  }
}

// What is seen of `length` positions, cut into `splits` parts of whole runs of `run` keys: [*first, *last) of the part.
RLHF_HOST_DEVICE inline void SplitKeys(int64_t length, int64_t window, int64_t splits, int64_t split, int64_t run,
                                       int64_t* first, int64_t* last) {
  const int64_t begin = window > 0 && window < length ? length - window : 0;
  const int64_t seen = length - begin;
  const int64_t size = ((seen + splits - 1) / splits + run - 1) / run * run;
  *first = begin + split * size < length ? begin + split * size : length;
  *last = *first + size < length ? *first + size : length;
}

// One number of the result from all parts: highest and sum lie 2 apart ([parts][2]), weighted `stride` apart.
RLHF_HOST_DEVICE inline float MergeParts(const float* moments, const float* weighted, int64_t stride, int64_t parts) {
  float higher = -INFINITY;
  for (int64_t p = 0; p < parts; ++p) higher = moments[2 * p] > higher ? moments[2 * p] : higher;
  float sum = 0, out = 0;
  for (int64_t p = 0; p < parts; ++p) {
    const float scale = PartScale(moments[2 * p], higher);
    sum += moments[2 * p + 1] * scale;
    out += weighted[p * stride] * scale;
  }
  return sum > 0 ? out / sum : 0.0F;
}

}  // namespace rlhf::model::kernels
