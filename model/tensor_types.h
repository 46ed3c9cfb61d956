// safetensors' types and LibTorch's.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
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

// Internal for a type that we write nowhere.
inline absl::StatusOr<artifact::DType> FromTorch(torch::Dtype dtype) {
  switch (dtype) {
    case torch::kFloat32:
      return artifact::DType::kF32;
    case torch::kBFloat16:
      return artifact::DType::kBF16;
    case torch::kFloat16:
      return artifact::DType::kF16;
    case torch::kInt64:
      return artifact::DType::kI64;
    default:
      return absl::InternalError(absl::StrCat("no file of ours holds tensors of type ", c10::toString(dtype)));
  }
}

}  // namespace rlhf::model
