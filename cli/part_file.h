// A file that is there whole or not at all, written piece by piece.
#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rlhf::cli {

// Written beside PATH, as PATH.part-PID, and renamed in the end: whoever is interrupted leaves no short file under its
// name. What is no regular file (a pipe, /dev/null) is written as it is. Errors are WriteError's (durable_file.h), of
// this machine (Here). Not thread-safe.
class PartFile {
 public:
  static absl::StatusOr<std::unique_ptr<PartFile>> Create(const std::string& path);
  ~PartFile();  // removes what was not finished
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;
  absl::Status Write(absl::string_view bytes);
  // Everything is written: gives the file its name.
  absl::Status Finish();

 private:
  PartFile(std::string path, std::string part, std::FILE* file)
      : path_(std::move(path)), part_(std::move(part)), file_(file) {}
  const std::string path_, part_;  // the same for what is no regular file
  std::FILE* file_;
};

// The whole of it at once.
absl::Status WriteWhole(const std::string& path, absl::string_view content);

}  // namespace rlhf::cli
