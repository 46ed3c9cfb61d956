// A safetensors file written tensor by tensor, in any order: only the one in hand is in memory.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "artifact/safetensors.h"

namespace rlhf::artifact {

// What a file will hold: TensorToWrite without its data.
struct TensorLayout {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

// Not thread-safe. Calls block on the disk. Errors: ResourceExhausted and FailedPrecondition as WriteError has them for
// a full and a read-only volume; InvalidArgument for a tensor that the layout does not have, or not of that size.
class SafetensorsWriter {
 public:
  virtual ~SafetensorsWriter() = default;  // without Finish nothing is left behind
  // Tensors lie in the file in the given order, under a temporary name until Finish.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(const std::string& path,
                                                                   const std::vector<TensorLayout>& layout);
  virtual absl::Status Write(const std::string& name, absl::Span<const uint8_t> data) = 0;
  // FailedPrecondition names a tensor that was not written. No fsync: what publishes the file does it.
  virtual absl::Status Finish() = 0;
};

// The bytes before the data section of a file of these tensors, and where each one begins after them.
std::string SafetensorsHeader(const std::vector<TensorLayout>& layout,
                              const std::map<std::string, std::string>& metadata, std::vector<uint64_t>* begins);

}  // namespace rlhf::artifact
