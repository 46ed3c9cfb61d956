#include "common/durable_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/file_parts.h"

namespace rlhf {
namespace {

std::string ParentOf(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

bool IsFullOrReadOnly(int error) {
  return error == ENOSPC || error == EDQUOT || error == EROFS;
}

absl::Status WriteError(int error, absl::string_view what, absl::string_view path) {
  if (error == EROFS) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot ", what, " ", path, ": its volume is read-only; make it writable and try again"));
  }
  if (IsFullOrReadOnly(error)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot ", what, " ", path, ": its volume is full; make room and try again"));
  }
  return absl::ErrnoToStatus(error, absl::StrCat("cannot ", what, " ", path));
}

absl::Status FsyncDir(const std::string& dir) {
  const int fd = open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return WriteError(errno, "open folder", dir);
  const int rc = fsync(fd);
  const int error = errno;
  close(fd);
  // Some file systems (FUSE, 9p) cannot fsync a folder and say EINVAL; there is nothing more to do on them.
  if (rc != 0 && error != EINVAL) return WriteError(error, "fsync folder", dir);
  return absl::OkStatus();
}

absl::Status WriteFileDurably(const std::string& path, absl::string_view content) {
  return WriteFileParts(path, {&content, 1}, Durability::kSynced);
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    if (errno == ENOENT) return absl::NotFoundError(absl::StrCat("no such file: ", path));
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  }
  std::string content;
  struct stat info;
  if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) content.reserve(static_cast<size_t>(info.st_size));
  char buffer[1 << 16];
  while (true) {
    const ssize_t n = read(fd, buffer, sizeof(buffer));
    if (n == 0) break;
    if (n < 0) {
      if (errno == EINTR) continue;
      const int error = errno;
      close(fd);
      return absl::ErrnoToStatus(error, absl::StrCat("cannot read ", path));
    }
    content.append(buffer, static_cast<size_t>(n));
  }
  close(fd);
  return content;
}

absl::Status MakeDirs(const std::string& dir, mode_t mode) {
  if (dir.empty()) return absl::InvalidArgumentError("cannot make a folder with an empty name");
  // Each new name must be durable in its parent, so the levels are made one by one.
  std::filesystem::path path;
  for (const auto& part : std::filesystem::path(dir)) {
    path /= part;
    if (mkdir(path.c_str(), mode) == 0) {
      if (absl::Status status = FsyncDir(ParentOf(path.string())); !status.ok()) return status;
      continue;
    }
    const int error = errno;
    std::error_code ignored;
    if (!std::filesystem::is_directory(path, ignored)) {
      return WriteError(error == EEXIST ? ENOTDIR : error, "make folder", path.string());
    }
  }
  return absl::OkStatus();
}

}  // namespace rlhf
