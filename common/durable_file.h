// Files that survive power loss once a call has returned OK.
#pragma once

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rlhf {

// Of a failed write's errno: ResourceExhausted when the volume (or a quota on it) is full, FailedPrecondition when it
// is read-only, both with what to do; any other as absl::ErrnoToStatus has it.
absl::Status WriteError(int error, absl::string_view what, absl::string_view path);
bool IsFullOrReadOnly(int error);  // an operator can mend it, and then the same write succeeds
// Temporary file in the same folder, fsync, rename, fsync of the folder.
absl::Status WriteFileDurably(const std::string& path, absl::string_view content);
absl::StatusOr<std::string> ReadFile(const std::string& path);  // NotFound with the path
absl::Status FsyncDir(const std::string& dir);
// What is made of the path has this mode, less the umask.
absl::Status MakeDirs(const std::string& dir, mode_t mode = 0755);
// Of what processes of one group write in, like the artifact root.
inline constexpr mode_t kGroupFolder = 0775;

}  // namespace rlhf
