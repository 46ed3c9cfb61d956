// The records of a data file, one after the other without reading it whole: JSON lines, or one JSON array, plain or
// gzip. Not thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace rlhf::cli {

class RecordReader {
 public:
  // NotFound, PermissionDenied; "-" is the standard input.
  static absl::StatusOr<std::unique_ptr<RecordReader>> Open(const std::string& path);
  ~RecordReader();
  // The text of the next record (not yet parsed) and the line it begins on, from 1. False at the end. DataLoss for a
  // damaged gzip stream or a record of more than 64 MiB.
  absl::StatusOr<bool> Next(std::string* text, int64_t* line);

 private:
  struct Impl;
  explicit RecordReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace rlhf::cli
