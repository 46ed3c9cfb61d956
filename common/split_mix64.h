// SplitMix64 (Steele, Lea, Flood 2014): the same numbers on every machine and library, for orders and samples that
// have to be made again. Not for secrets.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rlhf {

class SplitMix64 {
 public:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15ULL;

  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t Next() { return Mix(state_ += kStep); }
  size_t Below(size_t n) { return static_cast<size_t>(Next() % n); }          // n > 0
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }  // [0, 1)

  static uint64_t Mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

}  // namespace rlhf
