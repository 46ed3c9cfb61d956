// The bytes of a tensor in a safetensors file.
#pragma once

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "artifact/safetensors.h"

namespace rlhf {

inline std::vector<uint8_t> TensorBytes(const artifact::SafetensorsFile& file, const artifact::TensorInfo& info) {
  std::vector<uint8_t> bytes(info.end - info.begin);
  const absl::Status status = file.Read(info, 0, absl::MakeSpan(bytes));
  EXPECT_TRUE(status.ok()) << status;
  return bytes;
}

}  // namespace rlhf
