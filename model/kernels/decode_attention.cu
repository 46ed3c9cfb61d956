// Flash-decoding: one query token a sequence against its keys and values, the keys cut into parts that are merged in a
// second pass. Grouped query heads share a read of their keys.
#include "model/kernels/cuda_kernels.h"
#include "model/kernels/cuda_launch.h"
#include "model/kernels/softmax_partial.h"

namespace rlhf::model::kernels::cuda {
namespace {

constexpr int kWarps = 4, kLanes = 32, kRun = 4;

struct Warp {
  __device__ unsigned lane() const { return threadIdx.x % kLanes; }
  __device__ unsigned size() const { return kLanes; }
  __device__ float Sum(float value) const {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xFFFFFFFFU, value, step);
    return value;
  }
};

template <class T>
__device__ T Rounded(float value) {
  return static_cast<T>(value);
}
template <>
__device__ __nv_bfloat16 Rounded<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

template <class T>
__global__ void AppendKernel(AttentionShape shape, const T* qkv, DecodePlaces places, T* keys, T* values) {
  const int64_t b = blockIdx.x, length = places.lengths[b];
  if (length == 0) return;
  const int64_t width = shape.kv_heads * shape.dim;
  const T* source = qkv + (places.rows[b] * (shape.heads + 2 * shape.kv_heads) + shape.heads) * shape.dim;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    const int64_t head = i / shape.dim, e = i % shape.dim;
    const int64_t target = places.begins[b] + (head * places.rooms[b] + length - 1) * shape.dim + e;
    keys[target] = source[i];
    values[target] = source[width + i];
  }
}

// Block (split, tile of query heads, sequence): its warps take runs of keys in turn.
template <class T, int kHeads, int kPer, bool kWhole>
__global__ void __launch_bounds__(kWarps* kLanes)
    SplitKernel(AttentionShape shape, const T* qkv, const T* keys, const T* values, DecodePlaces places, int64_t splits,
                float* scratch, T* out) {
  RLHF_DYNAMIC_SHARED(shared);
  const Warp lanes;
  const int64_t b = blockIdx.z, length = places.lengths[b], group = shape.heads / shape.kv_heads;
  const int64_t tiles = (group + kHeads - 1) / kHeads;
  const int64_t kv_head = blockIdx.y / tiles, tile = blockIdx.y % tiles;
  const int64_t first_head = kv_head * group + tile * kHeads;
  const int here = static_cast<int>(min(static_cast<int64_t>(kHeads), group - tile * kHeads));
  const int dim = static_cast<int>(shape.dim), warp = threadIdx.x / kLanes;

  float q[kHeads][kPer];
  const T* row = qkv + (places.rows[b] * (shape.heads + 2 * shape.kv_heads) + first_head) * dim;
#pragma unroll
  for (int h = 0; h < kHeads; ++h)
    LoadRow<Warp, T, kPer, kWhole>(lanes, row + static_cast<int64_t>(h < here ? h : here - 1) * dim, dim, q[h]);

  int64_t first, last;
  SplitKeys(length, shape.window, splits, blockIdx.x, kWarps * kRun, &first, &last);
  const int64_t begin = places.begins[b] + kv_head * places.rooms[b] * dim;
  SoftmaxPartial<kHeads, kPer> part;
  AttendKeys<Warp, T, kHeads, kPer, kWhole>(lanes, q, keys + begin, values + begin, dim, first + warp * kRun, last,
                                            kWarps * kRun, shape.scale, shape.softcap, &part);

  // The warps' partials: moments [head][warp][2], weighted [head][warp][dim].
  float* const moments = shared;
  float* const weighted = shared + kHeads * kWarps * 2;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const int at = h * kWarps + warp;
    if (lanes.lane() == 0) {
      moments[2 * at] = part.highest[h];
      moments[2 * at + 1] = part.sum[h];
    }
#pragma unroll
    for (int e = 0; e < kPer; ++e) {
      const int place = PlaceInRow<Warp, kPer, kWhole>(lanes, e);
      if (place < dim) weighted[at * dim + place] = part.weighted[h][e];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < here * dim; i += kWarps * kLanes) {
    const int h = i / dim, e = i % dim;
    const float* own = moments + 2 * h * kWarps;
    const float merged = MergeParts(own, weighted + h * kWarps * dim + e, dim, kWarps);
    const int64_t head = first_head + h;
    if (splits == 1) {
      out[(places.rows[b] * shape.heads + head) * dim + e] = Rounded<T>(merged);
      continue;
    }
    // A part's result is its mean; with the sum of its weights it merges like a warp's.
    float higher = -INFINITY, sum = 0;
    for (int w = 0; w < kWarps; ++w) higher = fmaxf(higher, own[2 * w]);
    for (int w = 0; w < kWarps; ++w) sum += own[2 * w + 1] * PartScale(own[2 * w], higher);
    const int64_t slot = (b * shape.heads + head) * splits + blockIdx.x;
    scratch[slot * (dim + 2) + 2 + e] = merged * sum;
    if (e == 0) {
      scratch[slot * (dim + 2)] = higher;
      scratch[slot * (dim + 2) + 1] = sum;
    }
  }
}

// Block (head, sequence): scratch [sequence][head][split][2 + dim].
template <class T>
__global__ void MergeKernel(AttentionShape shape, DecodePlaces places, int64_t splits, const float* scratch, T* out) {
  RLHF_DYNAMIC_SHARED(moments);
  const int64_t head = blockIdx.x, b = blockIdx.y, dim = shape.dim;
  const float* parts = scratch + (b * shape.heads + head) * splits * (dim + 2);
  for (int64_t p = threadIdx.x; p < splits; p += blockDim.x) {
    moments[2 * p] = parts[p * (dim + 2)];
    moments[2 * p + 1] = parts[p * (dim + 2) + 1];
  }
  __syncthreads();
  for (int64_t e = threadIdx.x; e < dim; e += blockDim.x) {
    out[(places.rows[b] * shape.heads + head) * dim + e] =
        Rounded<T>(MergeParts(moments, parts + 2 + e, dim + 2, splits));
  }
}

struct Pass {
  const AttentionShape& shape;
  const void *qkv, *keys, *values;
  DecodePlaces places;
  int64_t splits;
  float* scratch;
  void* out;
  cudaStream_t stream;
};

template <class T, int kHeads, int kPer, bool kWhole>
void Split(const Pass& pass) {
  const AttentionShape& shape = pass.shape;
  const int64_t tiles = (shape.heads / shape.kv_heads + kHeads - 1) / kHeads;
  const dim3 grid(static_cast<unsigned>(pass.splits), static_cast<unsigned>(shape.kv_heads * tiles),
                  static_cast<unsigned>(pass.places.count));
  const size_t shared = sizeof(float) * kHeads * kWarps * static_cast<size_t>(shape.dim + 2);
  Launch(grid, kWarps * kLanes, shared, pass.stream, &SplitKernel<T, kHeads, kPer, kWhole>, shape,
         static_cast<const T*>(pass.qkv), static_cast<const T*>(pass.keys), static_cast<const T*>(pass.values),
         pass.places, pass.splits, pass.scratch, static_cast<T*>(pass.out));
}

template <class T, int kHeads>
void ByLength(const Pass& pass) {
  switch (pass.shape.dim) {
    case 64:
      return Split<T, kHeads, 2, true>(pass);
    case 128:
      return Split<T, kHeads, 4, true>(pass);
    case 256:
      return Split<T, kHeads, 8, true>(pass);
    default:
      return pass.shape.dim <= 128 ? Split<T, kHeads, 4, false>(pass) : Split<T, kHeads, 8, false>(pass);
  }
}

template <class T>
void Run(const Pass& pass) {
  switch (DecodeHeads(pass.shape)) {
    case 1:
      ByLength<T, 1>(pass);
      break;
    case 2:
      ByLength<T, 2>(pass);
      break;
    case 4:
      ByLength<T, 4>(pass);
      break;
    default:
      ByLength<T, 8>(pass);
  }
  if (pass.splits == 1) return;
  const dim3 grid(static_cast<unsigned>(pass.shape.heads), static_cast<unsigned>(pass.places.count));
  Launch(grid, 128, sizeof(float) * 2 * static_cast<size_t>(pass.splits), pass.stream, &MergeKernel<T>, pass.shape,
         pass.places, pass.splits, pass.scratch, static_cast<T*>(pass.out));
}

template <class T>
void Append(const AttentionShape& shape, const void* qkv, const DecodePlaces& places, void* keys, void* values,
            cudaStream_t stream) {
  Launch(static_cast<unsigned>(places.count), 256, 0, stream, &AppendKernel<T>, shape, static_cast<const T*>(qkv),
         places, static_cast<T*>(keys), static_cast<T*>(values));
}

}  // namespace

int64_t DecodeHeads(const AttentionShape& shape) {
  const int64_t group = shape.heads / shape.kv_heads;
  return group <= 2 ? group : group <= 4 ? 4 : 8;
}

int64_t DecodeScratch(const AttentionShape& shape, int64_t count, int64_t splits) {
  return splits == 1 ? 0 : count * shape.heads * splits * (shape.dim + 2);
}

int64_t DecodeSplits(const AttentionShape& shape, int64_t count, int64_t multiprocessors) {
  constexpr int64_t kBlocks = 4, kMost = 32;  // blocks a multiprocessor; parts, of which each is read again
  const int64_t blocks = count * shape.kv_heads;
  const int64_t splits = (kBlocks * multiprocessors + blocks - 1) / blocks;
  return splits < 1 ? 1 : splits > kMost ? kMost : splits;
}

int AppendKeys(const AttentionShape& shape, Element element, const void* qkv, const DecodePlaces& places, void* keys,
               void* values, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  element == Element::kFloat32 ? Append<float>(shape, qkv, places, keys, values, on)
                               : Append<__nv_bfloat16>(shape, qkv, places, keys, values, on);
  return cudaGetLastError();
}

int DecodeAttention(const AttentionShape& shape, Element element, const void* qkv, const void* keys, const void* values,
                    const DecodePlaces& places, int64_t splits, float* scratch, void* out, void* stream) {
  const Pass pass{shape, qkv, keys, values, places, splits, scratch, out, static_cast<cudaStream_t>(stream)};
  element == Element::kFloat32 ? Run<float>(pass) : Run<__nv_bfloat16>(pass);
  return cudaGetLastError();
}

const char* ErrorText(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace rlhf::model::kernels::cuda
