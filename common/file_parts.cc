#include "common/file_parts.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"

namespace rlhf {
namespace {

constexpr size_t kPartsTogether = 512;  // POSIX allows writev at least 16, Linux 1024

absl::Status WriteAll(int fd, absl::Span<const absl::string_view> parts, const std::string& path) {
  size_t first = 0, written = 0;  // of parts[first], so many bytes are written
  std::vector<iovec> together;
  while (first < parts.size()) {
    together.clear();
    const size_t end = std::min(parts.size(), first + kPartsTogether);
    for (size_t i = first; i < end; ++i) {
      absl::string_view left = parts[i];
      if (i == first) left.remove_prefix(written);
      together.push_back({const_cast<char*>(left.data()), left.size()});
    }
    const ssize_t n = writev(fd, together.data(), static_cast<int>(together.size()));
    if (n < 0) {
      if (errno == EINTR) continue;
      return WriteError(errno, "write", path);
    }
    written += static_cast<size_t>(n);
    while (first < parts.size() && written >= parts[first].size()) written -= parts[first++].size();
  }
  return absl::OkStatus();
}

// Blocks found at once, before the bytes come, make writing a large file faster; and a full volume shows at once. Where
// the file system cannot, nothing is lost.
absl::Status Reserve(int fd, absl::Span<const absl::string_view> parts, const std::string& path) {
  constexpr size_t kWorthIt = size_t{1} << 20;
  size_t size = 0;
  for (const absl::string_view part : parts) size += part.size();
  if (size < kWorthIt || fallocate(fd, 0, 0, static_cast<off_t>(size)) == 0) return absl::OkStatus();
  return errno == ENOSPC || errno == EDQUOT ? WriteError(errno, "write", path) : absl::OkStatus();
}

}  // namespace

absl::Status WriteFileParts(const std::string& path, absl::Span<const absl::string_view> parts, Durability durability) {
  static std::atomic<uint64_t> counter{0};
  const std::string temporary = absl::StrCat(path, ".tmp-", getpid(), "-", counter.fetch_add(1));
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return WriteError(errno, "create", temporary);
  absl::Status status = Reserve(fd, parts, temporary);
  if (status.ok()) status = WriteAll(fd, parts, temporary);
  if (status.ok() && durability == Durability::kSynced && fsync(fd) != 0)
    status = WriteError(errno, "fsync", temporary);
  if (close(fd) != 0 && status.ok()) status = WriteError(errno, "close", temporary);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0)
    status = WriteError(errno, "rename into place", path);
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status;
  }
  if (durability == Durability::kCached) return absl::OkStatus();
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return FsyncDir(folder.empty() ? "." : folder);
}

}  // namespace rlhf
