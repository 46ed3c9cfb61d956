// Files that survive power loss once a call has returned OK.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rlhf {

// Temporary file in the same folder, fsync, rename, fsync of the folder.
absl::Status WriteFileDurably(const std::string& path, absl::string_view content);
absl::StatusOr<std::string> ReadFile(const std::string& path);  // NotFound with the path
absl::Status FsyncDir(const std::string& dir);
absl::Status MakeDirs(const std::string& dir);

}  // namespace rlhf
