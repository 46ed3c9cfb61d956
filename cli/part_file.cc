#include "cli/part_file.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/connection.h"
#include "common/durable_file.h"

namespace rlhf::cli {

absl::StatusOr<std::unique_ptr<PartFile>> PartFile::Create(const std::string& path) {
  std::error_code error;
  const bool there = std::filesystem::exists(path, error);
  const bool regular = !there || std::filesystem::is_regular_file(path, error);
  // A link stays one: the file that it names is written anew.
  const std::string target = there && regular ? std::filesystem::canonical(path, error).string() : path;
  const std::string part = regular ? absl::StrCat(target, ".part-", getpid()) : target;
  std::FILE* file = std::fopen(part.c_str(), "wbe");
  if (file == nullptr) return Here(WriteError(errno, "write", path));
  return std::unique_ptr<PartFile>(new PartFile(target, part, file));
}

PartFile::~PartFile() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  if (part_ != path_) unlink(part_.c_str());
}

absl::Status PartFile::Write(absl::string_view bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_) == bytes.size()) return absl::OkStatus();
  return Here(WriteError(errno, "write", path_));
}

absl::Status PartFile::Finish() {
  const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
  if (closed && (part_ == path_ || std::rename(part_.c_str(), path_.c_str()) == 0)) return absl::OkStatus();
  const int failed = errno;
  if (part_ != path_) unlink(part_.c_str());
  return Here(WriteError(failed, "write", path_));
}

absl::Status WriteWhole(const std::string& path, absl::string_view content) {
  auto file = PartFile::Create(path);
  if (!file.ok()) return file.status();
  const absl::Status written = (*file)->Write(content);
  return written.ok() ? (*file)->Finish() : written;
}

}  // namespace rlhf::cli
