// The safetensors format without LibTorch: header parsing, reading, durable writing.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/file_parts.h"

namespace rlhf::artifact {

enum class DType { kF32, kF16, kBF16, kI64, kI32, kU8, kBool };
int64_t DTypeSize(DType dtype);
const char* DTypeName(DType dtype);  // the format's name: "F32", "BF16", …

struct TensorInfo {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // byte offsets into the data section
};

// One open file: what it is renamed to, or replaced by, does not change what is read. Immutable and thread-safe.
class SafetensorsFile {
 public:
  virtual ~SafetensorsFile() = default;
  // Validates everything before returning: header length (≤ 100 MB, inside the file), JSON, dtypes, shape products
  // without overflow, offsets in order, without overlap or gap, ending at the file's end. InvalidArgument names file
  // and tensor.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  virtual const std::map<std::string, TensorInfo>& tensors() const = 0;
  virtual const std::map<std::string, std::string>& metadata() const = 0;
  // Copies a tensor's bytes, from its byte `offset` on, into `to`, which must fit (offset + size ≤ end − begin).
  // Blocks. DataLoss where the file was cut short since it was opened; what the system says where it cannot be read.
  // The file is not mapped, for then either would be a signal (SIGBUS), not a status.
  virtual absl::Status Read(const TensorInfo& info, uint64_t offset, absl::Span<uint8_t> to) const = 0;
};

struct TensorToWrite {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  absl::Span<const uint8_t> data;
};
// Writes to a temporary name, fsyncs (unless kCached), renames, fsyncs the parent directory. Tensors are laid out in
// the given order.
absl::Status WriteSafetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                              const std::map<std::string, std::string>& metadata = {{"format", "pt"}},
                              Durability durability = Durability::kSynced);

// All weights of a model directory: model.safetensors, or model.safetensors.index.json with its shards.
struct ModelWeights {
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  struct Entry {
    const SafetensorsFile* file;
    const TensorInfo* info;
  };
  std::map<std::string, Entry> tensors;
};
absl::StatusOr<ModelWeights> OpenModelWeights(const std::string& model_dir);

}  // namespace rlhf::artifact
