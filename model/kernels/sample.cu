// Draws a token a row, one block each (sample_row.h).
#include "model/kernels/cuda_kernels.h"
#include "model/kernels/cuda_launch.h"

namespace rlhf::model::kernels::cuda {
namespace {

constexpr int kThreads = 512, kLanes = 32, kWarps = kThreads / kLanes;
constexpr unsigned kAll = 0xFFFFFFFFU;

class Block {
 public:
  explicit __device__ Block(double* shared) : shared_(shared) {}
  __device__ int64_t rank() const { return threadIdx.x; }
  __device__ int64_t size() const { return kThreads; }
  __device__ double Sum(double value) {
    return All(value, 0.0, [](double a, double b) { return a + b; });
  }
  __device__ void SumThree(double* values) {
#pragma unroll
    for (int i = 0; i < 3; ++i) values[i] = Sum(values[i]);
  }
  __device__ float Max(float value) {
    return All(value, -INFINITY, [](float a, float b) { return fmaxf(a, b); });
  }
  __device__ int32_t Min(int32_t value) {
    return All(value, sample_row::kNone, [](int32_t a, int32_t b) { return min(a, b); });
  }
  __device__ double Before(double value) {
    double inclusive = value;
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) {
      const double other = __shfl_up_sync(kAll, inclusive, step);
      if (lane >= step) inclusive += other;
    }
    if (lane == kLanes - 1) shared_[warp] = inclusive;
    __syncthreads();
    double before = 0;
    for (int w = 0; w < warp; ++w) before += shared_[w];
    __syncthreads();
    const double exclusive = __shfl_up_sync(kAll, inclusive, 1);
    return lane == 0 ? before : before + exclusive;
  }

 private:
  template <class T, class Fn>
  __device__ T All(T value, T neutral, Fn fn) {
    T* const shared = reinterpret_cast<T*>(shared_);
    const int lane = threadIdx.x % kLanes;
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) value = fn(value, __shfl_xor_sync(kAll, value, step));
    if (lane == 0) shared[threadIdx.x / kLanes] = value;
    __syncthreads();
    value = lane < kWarps ? shared[lane] : neutral;
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) value = fn(value, __shfl_xor_sync(kAll, value, step));
    __syncthreads();
    return value;
  }

  double* shared_;
};

__global__ void __launch_bounds__(kThreads)
    SampleKernel(const float* logits, int64_t width, const SampleRequest* requests, float* exps, SampledRow* tokens) {
  __shared__ double shared[kWarps];
  Block block(shared);
  const int64_t row = blockIdx.x;
  const SampledRow token = SampleRow(block, logits + row * width, width, requests[row], exps + row * width);
  if (threadIdx.x == 0) tokens[row] = token;
}

}  // namespace

int SampleRows(const float* logits, int64_t count, int64_t width, const SampleRequest* requests, float* exps,
               SampledRow* tokens, void* stream) {
  Launch(static_cast<unsigned>(count), kThreads, 0, static_cast<cudaStream_t>(stream), &SampleKernel, logits, width,
         requests, exps, tokens);
  return cudaGetLastError();
}

}  // namespace rlhf::model::kernels::cuda
