#include "cli/backup_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include <google/protobuf/util/json_util.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "cli/secret_file.h"
#include "common/durable_file.h"
#include "common/status_util.h"

namespace rlhf::cli {
namespace {

namespace fs = std::filesystem;

constexpr char kManifest[] = "backup.json";
constexpr char kRestoredFile[] = "RESTORED";  // tells the coordinator that its state is older than the fleet's

// A path of the manifest or the stream: relative, and inside.
absl::Status CheckPath(const std::string& path) {
  const fs::path p(path);
  bool inside = !path.empty() && p.is_relative();
  for (const fs::path& part : p) inside = inside && part != "..";
  if (!inside) return absl::DataLossError(absl::StrCat("the backup names \"", path, "\": expected a path inside it"));
  return absl::OkStatus();
}

absl::Status SyncFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool ok = fd >= 0 && fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) close(fd);
  return ok ? absl::OkStatus() : absl::ErrnoToStatus(error, absl::StrCat("cannot sync ", path));
}

absl::Status CheckFiles(const std::string& folder, const v1::BackupManifest& manifest) {
  for (const v1::FileEntry& file : manifest.files()) {
    RLHF_RETURN_IF_ERROR(CheckPath(file.path()));
    const std::string path = absl::StrCat(folder, "/", file.path());
    std::error_code error;
    const uint64_t size = fs::file_size(path, error);
    if (error || size != file.size()) {
      return absl::DataLossError(absl::StrCat(path, ": expected ", file.size(), " bytes, found ",
                                              error ? error.message() : absl::StrCat(size)));
    }
    const absl::StatusOr<std::string> digest = artifact::Sha256File(path);
    if (!digest.ok()) return digest.status();
    if (*digest != file.sha256()) return absl::DataLossError(absl::StrCat(path, ": its digest is not the manifest's"));
  }
  return absl::OkStatus();
}

absl::Status RenameDurably(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) return absl::UnavailableError(absl::StrCat("cannot rename ", from, ": ", error.message()));
  return FsyncDir(fs::absolute(to).parent_path().string());
}

}  // namespace

absl::StatusOr<std::unique_ptr<BackupWriter>> BackupWriter::Begin(const std::string& folder) {
  if (fs::exists(folder))
    return absl::AlreadyExistsError(absl::StrCat(folder, " exists: give the backup a folder of its own"));
  std::unique_ptr<BackupWriter> writer(new BackupWriter(folder));
  std::error_code ignored;
  fs::remove_all(writer->partial_, ignored);
  RLHF_RETURN_IF_ERROR(MakePrivateFolder(writer->partial_));
  return writer;
}

BackupWriter::~BackupWriter() {
  if (file_ != nullptr) std::fclose(file_);
  std::error_code ignored;
  fs::remove_all(partial_, ignored);
}

absl::Status BackupWriter::CloseFile() {
  if (file_ == nullptr) return absl::OkStatus();
  const bool ok = std::fclose(std::exchange(file_, nullptr)) == 0;
  if (!ok) return absl::UnavailableError(absl::StrCat("cannot write ", path_));
  return SyncFile(path_);
}

absl::Status BackupWriter::Take(const v1::BackupChunk& chunk) {
  switch (chunk.what_case()) {
    case v1::BackupChunk::kFile:
      RLHF_RETURN_IF_ERROR(CloseFile());
      RLHF_RETURN_IF_ERROR(CheckPath(chunk.file().path()));
      path_ = absl::StrCat(partial_, "/", chunk.file().path());
      RLHF_RETURN_IF_ERROR(MakeDirs(fs::path(path_).parent_path().string(), 0700));
      if (const int fd = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600); fd >= 0)
        file_ = fdopen(fd, "wb");
      if (file_ == nullptr) return absl::ErrnoToStatus(errno, absl::StrCat("cannot make ", path_));
      return absl::OkStatus();
    case v1::BackupChunk::kData:
      if (file_ == nullptr || std::fwrite(chunk.data().data(), 1, chunk.data().size(), file_) != chunk.data().size())
        return absl::UnavailableError(absl::StrCat("cannot write ", path_));
      return absl::OkStatus();
    case v1::BackupChunk::kManifest:
      manifest_ = chunk.manifest();
      complete_ = true;
      return CloseFile();
    default:
      return absl::OkStatus();  // of a later release
  }
}

absl::StatusOr<v1::BackupManifest> BackupWriter::Finish() {
  if (!complete_) return absl::DataLossError("the backup ended before its manifest: make it again");
  RLHF_RETURN_IF_ERROR(CheckFiles(partial_, manifest_));
  std::string json;
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  (void)google::protobuf::util::MessageToJsonString(manifest_, &json, options);
  RLHF_RETURN_IF_ERROR(WriteFileDurably(absl::StrCat(partial_, "/", kManifest), json));
  RLHF_RETURN_IF_ERROR(RenameDurably(partial_, folder_));
  return manifest_;
}

absl::Status RestoreBackup(const std::string& folder, const std::string& data_dir) {
  const absl::StatusOr<std::string> json = ReadFile(absl::StrCat(folder, "/", kManifest));
  if (!json.ok()) return Annotate(json.status(), "expected a complete backup");
  v1::BackupManifest manifest;
  if (!google::protobuf::util::JsonStringToMessage(*json, &manifest).ok())
    return absl::DataLossError(absl::StrCat(folder, "/", kManifest, " is damaged"));
  if (fs::exists(data_dir) && !fs::is_empty(data_dir)) {
    return absl::FailedPreconditionError(
        absl::StrCat(data_dir, " is not empty: stop its coordinator and move it away, or restore into another folder"));
  }
  RLHF_RETURN_IF_ERROR(CheckFiles(folder, manifest));
  const std::string partial = data_dir + ".partial";
  std::error_code error;
  fs::remove_all(partial, error);
  RLHF_RETURN_IF_ERROR(MakePrivateFolder(partial));
  for (const v1::FileEntry& file : manifest.files()) {
    const std::string to = absl::StrCat(partial, "/", file.path());
    RLHF_RETURN_IF_ERROR(MakeDirs(fs::path(to).parent_path().string(), 0700));
    fs::copy_file(absl::StrCat(folder, "/", file.path()), to, error);
    // The copy has the mode of what it is of, which an earlier release may have made.
    if (!error) fs::permissions(to, fs::perms::owner_read | fs::perms::owner_write, error);
    if (error) return absl::UnavailableError(absl::StrCat("cannot write ", to, ": ", error.message()));
    RLHF_RETURN_IF_ERROR(SyncFile(to));
  }
  RLHF_RETURN_IF_ERROR(WriteFileDurably(absl::StrCat(partial, "/", kRestoredFile), *json));
  fs::remove(data_dir, error);  // empty
  return RenameDurably(partial, data_dir);
}

}  // namespace rlhf::cli
