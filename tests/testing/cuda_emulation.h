// CUDA's kernels compiled for the host: enough of the language for model/kernels/*.cu. The threads of a block take
// turns on one thread of the host, from one barrier or shuffle to the next; blocks run one after another. It shows that
// arithmetic, indices and barriers are right; of the ordering of memory and of speed it shows nothing.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#define RLHF_EMULATE_CUDA
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)
#define RLHF_DYNAMIC_SHARED(name) float* const name = rlhf::emulation::Block::running->shared.data()

using std::max;
using std::min;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}  // as CUDA's: converts from a number
};
using cudaStream_t = void*;
using cudaError_t = int;
inline cudaError_t cudaGetLastError() {
  return 0;
}
inline const char* cudaGetErrorString(cudaError_t) {
  return "emulated";
}

namespace rlhf::emulation {

constexpr unsigned kLanes = 32;

class Barrier {
 public:
  explicit Barrier(unsigned threads) : threads_(threads) {}
  void Wait();

 private:
  unsigned threads_, arrived_ = 0;
  uint64_t passed_ = 0;
};

struct Block {
  inline static Block* running = nullptr;

  struct Thread {
    ucontext_t context;
    bool ended = false;
  };

  Block(dim3 at, unsigned count, size_t shared_bytes, std::function<void()> body)
      : index(at), body(std::move(body)), threads(count), all(count), exchanged(count) {
    // What was not written is no number.
    shared.assign(shared_bytes / sizeof(float) + 1, std::numeric_limits<float>::quiet_NaN());
    for (unsigned first = 0; first < count; first += kLanes) warps.emplace_back(std::min(kLanes, count - first));
  }

  // To the end of all threads. One that waits for ever, for another one ended before the barrier, ends the test.
  void Run() {
    constexpr size_t kStack = 64 << 10;
    static std::vector<std::unique_ptr<char[]>> stacks;  // of all blocks, one after another
    while (stacks.size() < threads.size()) stacks.emplace_back(new char[kStack]);
    running = this;
    for (size_t i = 0; i < threads.size(); ++i) {
      Thread& thread = threads[i];
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = stacks[i].get();
      thread.context.uc_stack.ss_size = kStack;
      thread.context.uc_link = &scheduler;
      makecontext(&thread.context, &Block::Enter, 0);
    }
    for (size_t left = threads.size(), rounds = 0; left > 0; ++rounds) {
      if (rounds > 10'000'000) std::abort();
      for (current = 0; current < threads.size(); ++current) {
        Thread& thread = threads[current];
        if (thread.ended) continue;
        swapcontext(&scheduler, &thread.context);
        if (thread.ended) --left;
      }
    }
    running = nullptr;
  }
  void Yield() { swapcontext(&threads[current].context, &scheduler); }

  dim3 index;
  std::function<void()> body;
  std::vector<Thread> threads;
  Barrier all;
  std::vector<Barrier> warps;
  std::vector<uint64_t> exchanged;
  std::vector<float> shared;
  ucontext_t scheduler;
  unsigned current = 0;

 private:
  static void Enter() {
    Block& block = *running;
    block.body();
    block.threads[block.current].ended = true;
  }
};

inline void Barrier::Wait() {
  if (++arrived_ == threads_) {
    arrived_ = 0;
    ++passed_;
    return;
  }
  for (const uint64_t before = passed_; passed_ == before;) Block::running->Yield();
}

// A value of another lane of the warp.
template <class T>
T Exchange(T value, unsigned lane) {
  Block& block = *Block::running;
  const unsigned warp = block.current / kLanes;
  std::memcpy(&block.exchanged[block.current], &value, sizeof(T));
  block.warps[warp].Wait();
  T other;
  std::memcpy(&other, &block.exchanged[warp * kLanes + lane], sizeof(T));
  block.warps[warp].Wait();
  return other;
}

}  // namespace rlhf::emulation

#define threadIdx (dim3(rlhf::emulation::Block::running->current, 0, 0))
#define blockIdx (rlhf::emulation::Block::running->index)
#define blockDim (dim3(static_cast<unsigned>(rlhf::emulation::Block::running->threads.size())))

inline void __syncthreads() {
  rlhf::emulation::Block::running->all.Wait();
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return rlhf::emulation::Exchange(value, (threadIdx.x % rlhf::emulation::kLanes) ^ static_cast<unsigned>(mask));
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const unsigned lane = threadIdx.x % rlhf::emulation::kLanes, by = static_cast<unsigned>(delta);
  return rlhf::emulation::Exchange(value, lane >= by ? lane - by : lane);
}

struct __nv_bfloat16 {
  uint16_t bits;
  operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float out;
    std::memcpy(&out, &wide, sizeof(out));
    return out;
  }
};
// To the nearest, ties to even; of finite numbers.
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof(wide));
  wide += 0x7FFF + ((wide >> 16) & 1);
  return {static_cast<uint16_t>(wide >> 16)};
}

namespace rlhf::model::kernels::cuda {

template <class... Parameters, class... Arguments>
void Launch(dim3 grid, unsigned threads, size_t shared, cudaStream_t, void (*kernel)(Parameters...),
            Arguments... arguments) {
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x)
        emulation::Block(dim3(x, y, z), threads, shared, [&] { kernel(arguments...); }).Run();
    }
  }
}

}  // namespace rlhf::model::kernels::cuda
