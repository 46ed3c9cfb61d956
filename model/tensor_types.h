// safetensors' types and LibTorch's.
#pragma once

#include "artifact/safetensors.h"
#include "model/libtorch.h"

namespace rlhf::model {

inline torch::Dtype ToTorch(artifact::DType dtype) {
  switch (dtype) {
    case artifact::DType::kF16:
      return torch::kFloat16;
    case artifact::DType::kBF16:
      return torch::kBFloat16;
    case artifact::DType::kI64:
      return torch::kInt64;
    case artifact::DType::kI32:
      return torch::kInt32;
    case artifact::DType::kU8:
      return torch::kUInt8;
    case artifact::DType::kBool:
      return torch::kBool;
    case artifact::DType::kF32:
      break;
  }
  return torch::kFloat32;
}

inline artifact::DType FromTorch(torch::Dtype dtype) {
  if (dtype == torch::kBFloat16) return artifact::DType::kBF16;
  if (dtype == torch::kFloat16) return artifact::DType::kF16;
  return artifact::DType::kF32;
}

}  // namespace rlhf::model
