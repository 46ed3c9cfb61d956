#include "coordinator/upload_session.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <limits>
#include <map>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "artifact/digest.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "coordinator/names.h"
#include "coordinator/volume_watch.h"

namespace rlhf::coordinator {
namespace {

constexpr int kMaxFiles = 10'000;
constexpr uint64_t kNoBound = std::numeric_limits<uint64_t>::max();

absl::Status FileError(int error, const std::string& what, const std::string& path) {
  const absl::Status status = WriteError(error, what, absl::StrCat(path, " in the artifact root"));
  return IsFullOrReadOnly(error) ? WithVolumeReason(status) : status;
}

}  // namespace

absl::StatusOr<std::string> DigestOf(const google::protobuf::RepeatedPtrField<v1::FileEntry>& files) {
  if (files.empty() || files.size() > kMaxFiles) {
    return absl::InvalidArgumentError(absl::StrCat("files: expected 1 to ", kMaxFiles, " files, found ", files.size()));
  }
  std::map<std::string, const v1::FileEntry*> sorted;
  for (int i = 0; i < files.size(); ++i) {
    const v1::FileEntry& file = files[i];
    RLHF_RETURN_IF_ERROR(CheckRelativePath(absl::StrCat("files[", i, "].path"), file.path()));
    if (!IsSha256(file.sha256())) {
      return absl::InvalidArgumentError(
          absl::StrCat("files[", i, "].sha256: expected 64 lower-case hexadecimal digits"));
    }
    if (!sorted.emplace(file.path(), &file).second) {
      return absl::InvalidArgumentError(absl::StrCat("files[", i, "].path: \"", file.path(), "\" is there twice"));
    }
  }
  std::string manifest;
  std::string previous;
  for (const auto& [path, file] : sorted) {
    if (!previous.empty() && sorted.lower_bound(absl::StrCat(previous, "/")) != sorted.end() &&
        sorted.lower_bound(absl::StrCat(previous, "/"))
                ->first.compare(0, previous.size() + 1, absl::StrCat(previous, "/")) == 0) {
      return absl::InvalidArgumentError(absl::StrCat("files: \"", previous, "\" is both a file and a folder"));
    }
    previous = path;
    absl::StrAppend(&manifest, file->sha256(), " ", file->size(), " ", path, "\n");
  }
  return absl::StrCat("sha256:", artifact::Sha256Hex(manifest));
}

std::optional<uint64_t> FreeBytesOf(const std::string& folder) {
  const std::optional<VolumeRoom> room = RoomOf(folder);
  return room ? std::optional<uint64_t>(room->free_bytes) : std::nullopt;
}

absl::StatusOr<std::shared_ptr<UploadSession>> UploadSession::Open(const v1::StartUploadRequest& request,
                                                                   const std::string& staging_dir, UploadRoom room) {
  std::shared_ptr<UploadSession> session(new UploadSession(request, staging_dir, std::move(room)));
  RLHF_RETURN_IF_ERROR(WithVolumeReason(MakeDirs(staging_dir, kGroupFolder)));
  absl::MutexLock lock(&session->mu_);
  uint64_t there = 0, to_come = 0;
  for (int i = 0; i < request.files_size(); ++i) {
    const std::string path = session->PathOf(i);
    RLHF_RETURN_IF_ERROR(WithVolumeReason(MakeDirs(std::filesystem::path(path).parent_path().string(), kGroupFolder)));
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0) return FileError(errno, "create", request.files(i).path());
    const absl::Cleanup closer = [fd] { close(fd); };
    struct stat info;
    if (fstat(fd, &info) != 0) return FileError(errno, "look at", request.files(i).path());
    uint64_t present = static_cast<uint64_t>(info.st_size);
    if (present > request.files(i).size()) {
      if (ftruncate(fd, 0) != 0) return FileError(errno, "empty", request.files(i).path());
      present = 0;
    }
    session->offsets_.push_back(present);
    there += present;
    const uint64_t rest = request.files(i).size() - present;
    to_come = rest > kNoBound - to_come ? kNoBound : to_come + rest;
  }
  absl::Status room_for_it = session->CheckRoom(to_come);
  if (!room_for_it.ok()) {
    std::error_code ignored;  // empty files: at most clutter
    if (there == 0) std::filesystem::remove_all(staging_dir, ignored);
    return room_for_it;
  }
  return session;
}

absl::Status UploadSession::CheckRoom(uint64_t bytes) const {
  const std::optional<uint64_t> free = bytes == 0 ? std::nullopt : room_.free_bytes(staging_dir_);
  if (!free || (*free >= room_.reserve_bytes && *free - room_.reserve_bytes >= bytes)) return absl::OkStatus();
  return WithVolumeReason(absl::ResourceExhaustedError(
      absl::StrCat("the artifact root cannot take the upload: its volume is full but for ", *free >> 20,
                   " MB, of which ", room_.reserve_bytes >> 20, " MB stay free (--min-free-mb and a quarter), and ",
                   ((bytes - 1) >> 20) + 1, " MB are to come; make room, or upload less")));
}

std::string UploadSession::PathOf(int file) const {
  return absl::StrCat(staging_dir_, "/", request_.files(file).path());
}

std::vector<uint64_t> UploadSession::Offsets() const {
  absl::MutexLock lock(&mu_);
  return offsets_;
}

absl::Status UploadSession::Write(const v1::UploadChunk& chunk) {
  if (chunk.file() >= static_cast<uint32_t>(request_.files_size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("file: expected 0 to ", request_.files_size() - 1, ", found ", chunk.file()));
  }
  const int index = static_cast<int>(chunk.file());
  const v1::FileEntry& file = request_.files(index);
  absl::MutexLock writing(&writing_);
  uint64_t present = 0;
  {
    absl::MutexLock lock(&mu_);
    if (sealed_) return absl::FailedPreconditionError("the upload is being finished; nothing more can be added");
    present = offsets_[static_cast<size_t>(index)];
  }
  const auto there = [this, index](uint64_t bytes) {
    absl::MutexLock lock(&mu_);
    offsets_[static_cast<size_t>(index)] = bytes;
  };
  if (chunk.offset() > present) {
    return absl::FailedPreconditionError(absl::StrCat(file.path(), ": expected a chunk at offset ", present, ", found ",
                                                      chunk.offset(), "; start the upload again to learn the offsets"));
  }
  if (chunk.data().size() > file.size() || chunk.offset() > file.size() - chunk.data().size()) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": the manifest says ", file.size(),
                                                   " bytes, the chunk ends at ", chunk.offset() + chunk.data().size()));
  }
  const uint64_t known = std::min<uint64_t>(present - chunk.offset(), chunk.data().size());
  RLHF_RETURN_IF_ERROR(CheckRoom(chunk.data().size() - known));
  const int fd = open(PathOf(index).c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return FileError(errno, "open", file.path());
  const absl::Cleanup closer = [fd] { close(fd); };
  for (size_t at = known; at < chunk.data().size();) {
    const ssize_t n =
        pwrite(fd, chunk.data().data() + at, chunk.data().size() - at, static_cast<off_t>(chunk.offset() + at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      // Somebody else took the reserve as well: what is here is sent again, what they write is not.
      if (IsFullOrReadOnly(error) && ftruncate(fd, 0) == 0) there(0);
      return FileError(error, "write", file.path());
    }
    at += static_cast<size_t>(n);
    there(chunk.offset() + at);
  }
  return absl::OkStatus();
}

absl::Status UploadSession::Verify() {
  {
    absl::MutexLock writing(&writing_);
    absl::MutexLock lock(&mu_);
    for (int i = 0; i < request_.files_size(); ++i) {
      const uint64_t present = offsets_[static_cast<size_t>(i)];
      if (present == request_.files(i).size()) continue;
      return absl::FailedPreconditionError(absl::StrCat(request_.files(i).path(), ": ", present, " of ",
                                                        request_.files(i).size(), " bytes are there; send the rest"));
    }
    sealed_ = true;
  }
  absl::Status status;
  for (int i = 0; i < request_.files_size() && status.ok(); ++i) {
    const absl::StatusOr<std::string> found = artifact::Sha256File(PathOf(i));
    status = found.status();
    if (!status.ok() || *found == request_.files(i).sha256()) continue;
    status = WithReason(
        absl::DataLossError(absl::StrCat(request_.files(i).path(), ": expected SHA-256 ", request_.files(i).sha256(),
                                         ", found ", *found, "; send the file again from its beginning")),
        v1::DIGEST_MISMATCH);
    if (truncate(PathOf(i).c_str(), 0) != 0) continue;
    absl::MutexLock lock(&mu_);
    offsets_[static_cast<size_t>(i)] = 0;
  }
  if (!status.ok()) {
    absl::MutexLock lock(&mu_);
    sealed_ = false;
  }
  return status;
}

}  // namespace rlhf::coordinator
