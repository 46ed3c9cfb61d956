// Philox-4x32-10 (Salmon et al., SC 2011): the counter-based noise of sampling, the same on every device.
#pragma once

#include <cstdint>

#include "model/kernels/host_device.h"

namespace rlhf::model::kernels {

struct PhiloxCounter {
  uint32_t words[4] = {};
  uint32_t key[2] = {};
};

// Uniform in (0, 1), of 53 bits.
RLHF_HOST_DEVICE inline double PhiloxUniform(const PhiloxCounter& counter) {
  uint32_t a = counter.words[0], b = counter.words[1], c = counter.words[2], d = counter.words[3];
  uint32_t key0 = counter.key[0], key1 = counter.key[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * a;
    const uint64_t product1 = uint64_t{0xCD9E8D57} * c;
    a = static_cast<uint32_t>(product1 >> 32) ^ b ^ key0;
    b = static_cast<uint32_t>(product1);
    c = static_cast<uint32_t>(product0 >> 32) ^ d ^ key1;
    d = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  const uint64_t bits = (static_cast<uint64_t>(a) << 21) ^ (b >> 11);
  return (static_cast<double>(bits & ((uint64_t{1} << 53) - 1)) + 0.5) * 0x1.0p-53;
}

}  // namespace rlhf::model::kernels
