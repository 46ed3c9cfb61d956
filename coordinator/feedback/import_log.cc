#include "coordinator/feedback/import_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/util/delimited_message_util.h>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

constexpr size_t kBuffered = 1 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<ImportLogWriter>> ImportLogWriter::Open(const std::string& path, uint64_t length) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  RLHF_RETURN_IF_ERROR(MakeDirs(folder));
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  auto writer = std::unique_ptr<ImportLogWriter>(new ImportLogWriter(fd, length, path));
  struct stat info {};
  if (fstat(fd, &info) != 0 || static_cast<uint64_t>(info.st_size) < length) {
    return absl::DataLossError(absl::StrCat(path, " has ", info.st_size, " bytes; expected ", length,
                                            ": restore the data directory from a backup"));
  }
  if (ftruncate(fd, static_cast<off_t>(length)) != 0 || lseek(fd, 0, SEEK_END) < 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot cut ", path));
  RLHF_RETURN_IF_ERROR(FsyncDir(folder));
  return writer;
}

ImportLogWriter::~ImportLogWriter() {
  close(fd_);
}

absl::Status ImportLogWriter::Append(const v1::Comparison& comparison) {
  // A StringOutputStream would clear the buffer's whole unused capacity for every record.
  uint8_t size[5];
  const uint8_t* end = google::protobuf::io::CodedOutputStream::WriteVarint32ToArray(
      static_cast<uint32_t>(comparison.ByteSizeLong()), size);
  buffer_.append(reinterpret_cast<const char*>(size), static_cast<size_t>(end - size));
  comparison.AppendToString(&buffer_);
  return buffer_.size() >= kBuffered ? Flush() : absl::OkStatus();
}

absl::Status ImportLogWriter::Flush() {
  size_t written = 0;
  while (written < buffer_.size()) {
    const ssize_t n = write(fd_, buffer_.data() + written, buffer_.size() - written);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path_));
    written += static_cast<size_t>(n);
  }
  length_ += buffer_.size();
  buffer_.clear();
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> ImportLogWriter::Sync() {
  RLHF_RETURN_IF_ERROR(Flush());
  if (fsync(fd_) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot sync ", path_));
  return length_;
}

struct ImportLogReader::Impl {
  Impl(int file, std::string name, int64_t size)
      : path(std::move(name)), length(size), stream(file), limited(&stream, size) {
    stream.SetCloseOnDelete(true);
  }
  std::string path;
  int64_t length;
  google::protobuf::io::FileInputStream stream;
  google::protobuf::io::LimitingInputStream limited;
};

ImportLogReader::ImportLogReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ImportLogReader::~ImportLogReader() = default;

absl::StatusOr<std::unique_ptr<ImportLogReader>> ImportLogReader::Open(const std::string& path, uint64_t length) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  return std::unique_ptr<ImportLogReader>(
      new ImportLogReader(std::make_unique<Impl>(fd, path, static_cast<int64_t>(length))));
}

absl::StatusOr<bool> ImportLogReader::Next(v1::Comparison* comparison) {
  bool clean_end = false;
  comparison->Clear();
  const int64_t at = impl_->limited.ByteCount();
  if (google::protobuf::util::ParseDelimitedFromZeroCopyStream(comparison, &impl_->limited, &clean_end)) return true;
  // A size that is no number, and a file that is too short, look like an end to the parser.
  if (clean_end && at == impl_->length) return false;
  return absl::DataLossError(
      absl::StrCat(impl_->path, ": the record at byte ", at, " cannot be read; restore a backup"));
}

}  // namespace rlhf::coordinator
