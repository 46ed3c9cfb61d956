// Imported comparisons of one set, on disk: an append-only file of size-prefixed messages. Only the first `length`
// bytes, which a row names once they are durable, count; what lies beyond was never acknowledged.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "rlhf/v1/data.pb.h"

namespace rlhf::coordinator {

// Not thread-safe; blocks on the disk.
class ImportLogWriter {
 public:
  // Creates the file, or cuts it to `length`. DataLoss when it is shorter.
  static absl::StatusOr<std::unique_ptr<ImportLogWriter>> Open(const std::string& path, uint64_t length);
  ~ImportLogWriter();
  absl::Status Append(const v1::Comparison& comparison);
  absl::StatusOr<uint64_t> Sync();  // makes it durable; returns the length

 private:
  ImportLogWriter(int fd, uint64_t length, std::string path) : fd_(fd), length_(length), path_(std::move(path)) {}
  absl::Status Flush();

  const int fd_;
  uint64_t length_;
  const std::string path_;
  std::string buffer_;
};

class ImportLogReader {
 public:
  // NotFound without the file.
  static absl::StatusOr<std::unique_ptr<ImportLogReader>> Open(const std::string& path, uint64_t length);
  ~ImportLogReader();
  // False at the end. DataLoss names the offset of a damaged record.
  absl::StatusOr<bool> Next(v1::Comparison* comparison);

 private:
  struct Impl;
  explicit ImportLogReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace rlhf::coordinator
