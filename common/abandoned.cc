#include "common/abandoned.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/log.h"

namespace rlhf {
namespace {

namespace fs = std::filesystem;

constexpr char kLock[] = ".lock";

// What the folder's volume takes for now: its server's time, where it has one. Needs no room on it.
std::optional<fs::file_time_type> TimeOfVolume(const std::string& dir) {
  const timespec now[2] = {{0, UTIME_NOW}, {0, UTIME_NOW}};
  std::error_code error;
  if (utimensat(AT_FDCWD, dir.c_str(), now, 0) == 0) {
    const fs::file_time_type touched = fs::last_write_time(dir, error);
    if (!error) return touched;
  } else if (errno != ENOENT) {
    spdlog::warn("what is abandoned in {} stays: its volume's time cannot be had: {}", dir, std::strerror(errno));
  }
  return std::nullopt;
}

// Whether something in it, or the entry itself, was written after `since`, or cannot be told.
bool WrittenAfter(const fs::path& entry, fs::file_time_type since) {
  std::error_code error;
  if (fs::last_write_time(entry, error) > since || error) return true;
  if (!fs::is_directory(entry, error)) return static_cast<bool>(error);
  fs::recursive_directory_iterator it(entry, error), end;
  for (; !error && it != end; it.increment(error)) {
    if (it->is_symlink(error)) continue;
    if (fs::last_write_time(it->path(), error) > since) return true;
  }
  return static_cast<bool>(error);
}

}  // namespace

int RemoveAbandoned(const std::string& dir, absl::Duration idle,
                    absl::FunctionRef<bool(const std::string& name)> keep) {
  const std::optional<fs::file_time_type> now = TimeOfVolume(dir);
  if (!now.has_value()) return 0;
  const fs::file_time_type since =
      *now - std::chrono::duration_cast<fs::file_time_type::duration>(absl::ToChronoSeconds(idle));
  std::error_code error;
  std::vector<fs::path> found;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    if (!keep(it->path().filename().string()) && !WrittenAfter(it->path(), since)) found.push_back(it->path());
  }
  int removed = 0;
  for (const fs::path& path : found) {
    fs::remove_all(path, error);
    removed += error ? 0 : 1;
  }
  return removed;
}

absl::StatusOr<std::unique_ptr<WorkFolder>> WorkFolder::Take(const std::string& dir) {
  if (absl::Status status = MakeDirs(dir); !status.ok()) return status;
  const std::string path = absl::StrCat(dir, "/", kLock);
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return WriteError(errno, "open", path);
  int removed = 0;
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
    std::error_code ignored;
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(dir, ignored)) {
      if (entry.path().filename() != kLock) found.push_back(entry.path());
    }
    for (const fs::path& entry : found) removed += fs::remove_all(entry, ignored) > 0 && !ignored ? 1 : 0;
  }
  // Whoever else takes it sees that somebody is there. It may be emptied once more before that: nothing is in it yet.
  if (flock(fd, LOCK_SH) != 0) {
    const int error = errno;
    close(fd);
    return absl::ErrnoToStatus(error, absl::StrCat("cannot lock ", path));
  }
  return std::unique_ptr<WorkFolder>(new WorkFolder(fd, removed));
}

WorkFolder::~WorkFolder() {
  close(fd_);
}

}  // namespace rlhf
