// Rows of CPU tensors in float32 or bfloat16, as the kernels take them: float32, converted a block at a time, which
// stays in the cache, instead of a tensor at a time.
#pragma once

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <utility>

#include "model/device.h"
#include "model/kernels/cpu_kernels.h"
#include "model/libtorch.h"

namespace rlhf::model {

// Memory of a thread, not initialised, that stays with it: taken anew every time, it would be paged in anew. One at a
// time.
class Scratch {
 public:
  explicit Scratch(std::initializer_list<int64_t> sizes) {
    int64_t total = 0;
    for (const int64_t size : sizes) total += size;
    Held& held = Memory();
    if (held.size < total) {
      held.numbers.reset();  // before there is a second one
      held.numbers.reset(new float[static_cast<size_t>(total)]);
      held.size = total;
    }
    next_ = held.numbers.get();
  }
  ~Scratch() {
    if (Memory().size > kStays) Memory() = {};
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* Take(int64_t size) { return std::exchange(next_, next_ + size); }

 private:
  static constexpr int64_t kStays = int64_t{4} << 20;  // numbers: more, of one long sequence, is given back
  struct Held {
    std::unique_ptr<float[]> numbers;
    int64_t size = 0;
  };
  static Held& Memory() {
    static thread_local Held held;
    return held;
  }
  float* next_ = nullptr;
};

// Rows of `width` numbers, `stride` numbers apart, of float32 or bfloat16.
class FloatRows {
 public:
  FloatRows() = default;
  // All of a contiguous tensor [rows, …].
  explicit FloatRows(const torch::Tensor& x)
      : FloatRows(x, x.data_ptr(), x.numel() / std::max<int64_t>(1, x.size(0)), x.stride(0)) {}
  // Head `head` of x [rows, heads, dim].
  static FloatRows OfHead(const torch::Tensor& x, int64_t head) {
    return {x, static_cast<char*>(x.data_ptr()) + head * x.stride(1) * static_cast<int64_t>(x.element_size()),
            x.size(2), x.stride(0)};
  }

  // Copies rows to where each takes `room` numbers, those beyond `width` zero.
  void Read(int64_t first, int64_t count, int64_t room, float* to) const {
    if (stride_ == width_ && room == width_) return Widen(first, count * width_, to);
    for (int64_t t = 0; t < count; ++t, to += room) {
      Widen(first + t, width_, to);
      std::fill(to + width_, to + room, 0.0F);
    }
  }
  void Write(int64_t first, int64_t count, int64_t room, const float* from) const {
    if (stride_ == width_ && room == width_) return Narrow(from, count * width_, first);
    for (int64_t t = 0; t < count; ++t, from += room) Narrow(from, width_, first + t);
  }

  // Rows without a gap between them: where they are, or, of bfloat16, converted into scratch of count · width numbers.
  const float* In(int64_t first, int64_t count, float* scratch) const {
    if (!narrow_) return reinterpret_cast<const float*>(At(first));
    Widen(first, count * width_, scratch);
    return scratch;
  }
  // Where to write rows that Written then converts from.
  float* Out(int64_t first, float* scratch) const { return narrow_ ? scratch : reinterpret_cast<float*>(At(first)); }
  void Written(int64_t first, int64_t count, const float* scratch) const {
    if (narrow_) Narrow(scratch, count * width_, first);
  }
  int64_t width() const { return width_; }

 private:
  FloatRows(const torch::Tensor& x, void* data, int64_t width, int64_t stride)
      : data_(static_cast<char*>(data)), narrow_(x.scalar_type() == torch::kBFloat16), width_(width), stride_(stride) {}

  char* At(int64_t row) const { return data_ + row * stride_ * (narrow_ ? 2 : 4); }
  void Widen(int64_t row, int64_t count, float* to) const {
    if (narrow_) return kernels::Widen(reinterpret_cast<const uint16_t*>(At(row)), count, to);
    Copy(reinterpret_cast<const float*>(At(row)), count, to);
  }
  void Narrow(const float* from, int64_t count, int64_t row) const {
    if (narrow_) return kernels::Narrow(from, count, reinterpret_cast<uint16_t*>(At(row)));
    Copy(from, count, reinterpret_cast<float*>(At(row)));
  }
  // A head's row is so short that a call of memmove would cost more.
  static void Copy(const float* from, int64_t count, float* to) {
    constexpr int64_t kTogether = 8;
    int64_t i = 0;
    for (; i + kTogether <= count; i += kTogether) std::memcpy(to + i, from + i, kTogether * sizeof(float));
    for (; i < count; ++i) to[i] = from[i];
  }

  char* data_ = nullptr;
  bool narrow_ = false;
  int64_t width_ = 0, stride_ = 0;
};

}  // namespace rlhf::model
