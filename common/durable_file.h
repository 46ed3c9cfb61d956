// Files that survive power loss once a call has returned OK.
#pragma once

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rlhf {

// Temporary file in the same folder, fsync, rename, fsync of the folder.
absl::Status WriteFileDurably(const std::string& path, absl::string_view content);
absl::StatusOr<std::string> ReadFile(const std::string& path);  // NotFound with the path
absl::Status FsyncDir(const std::string& dir);
// What is made of the path has this mode, less the umask.
absl::Status MakeDirs(const std::string& dir, mode_t mode = 0755);
// Of what processes of one group write in, like the artifact root.
inline constexpr mode_t kGroupFolder = 0775;

}  // namespace rlhf
