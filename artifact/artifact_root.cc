#include "artifact/artifact_root.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "artifact/digest.h"
#include "common/abandoned.h"
#include "common/durable_file.h"

namespace rlhf::artifact {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "sha256:";
constexpr char kManifestName[] = ".manifest.json";
constexpr char kStaging[] = ".staging";

absl::StatusOr<std::string> HexOf(const std::string& digest) {
  const std::string hex = absl::StartsWith(digest, kPrefix) ? digest.substr(sizeof(kPrefix) - 1) : "";
  const bool valid = hex.size() == 64 && std::all_of(hex.begin(), hex.end(), [](char c) {
                       return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
                     });
  if (!valid)
    return absl::InvalidArgumentError(absl::StrCat("expected a digest sha256:<64 hex digits>, found \"", digest, "\""));
  return hex;
}

// A full or read-only volume says so; anything else may pass.
absl::Status MoveError(int error, absl::string_view what, const fs::path& path) {
  if (IsFullOrReadOnly(error)) return WriteError(error, what, path.string());
  return absl::UnavailableError(absl::StrCat("cannot ", what, " ", path.string(), ": ", std::strerror(error)));
}

absl::Status FsyncFile(const fs::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::InternalError(absl::StrCat("cannot open ", path.string(), ": ", std::strerror(errno)));
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  if (result != 0) return MoveError(error, "make durable", path);
  return absl::OkStatus();
}

// Of a link whose end is no regular file.
absl::Status LinkError(const fs::path& link) {
  std::error_code error;
  const std::string target = fs::read_symlink(link, error).string();
  const char* found = fs::is_directory(link, error) ? "a folder; copy the folder"
                      : fs::exists(link, error)     ? "which is no regular file"
                                                    : "where there is nothing: was a download interrupted?";
  return absl::InvalidArgumentError(
      absl::StrCat(link.string(), ": expected a file, or a link to one, found a link to ", target, ", ", found));
}

// Regular files below root, by relative path; anything else is refused, so that nothing outside is read but what the
// links of a user's own folder name.
absl::StatusOr<std::vector<std::string>> ListFiles(const fs::path& root, Origin origin) {
  std::vector<std::string> out;
  std::error_code error;
  fs::recursive_directory_iterator it(root, error), end;
  for (; !error && it != end; it.increment(error)) {
    const std::string relative = it->path().lexically_relative(root).generic_string();
    if (origin == Origin::kUser && IsHidden(it->path())) {
      it.disable_recursion_pending();
      continue;
    }
    if (it->is_symlink()) {
      if (origin == Origin::kService)
        return absl::InvalidArgumentError(
            absl::StrCat(it->path().string(), ": symbolic links cannot be in an artifact; copy the file"));
      std::error_code unreadable;
      if (!it->is_regular_file(unreadable)) return LinkError(it->path());
    } else if (it->is_directory()) {
      continue;
    } else if (!it->is_regular_file()) {
      return absl::InvalidArgumentError(
          absl::StrCat(it->path().string(), ": only regular files can be in an artifact"));
    }
    if (relative == kManifestName) continue;
    if (absl::StrContains(relative, '\n')) return absl::InvalidArgumentError("a file's name holds a line break");
    out.push_back(relative);
  }
  if (error) return absl::NotFoundError(absl::StrCat("cannot list ", root.string(), ": ", error.message()));
  std::sort(out.begin(), out.end());
  if (out.empty())
    return absl::InvalidArgumentError(absl::StrCat(root.string(), ": expected at least one file, found none"));
  return out;
}

absl::StatusOr<Manifest> ManifestOf(const fs::path& root, const std::vector<std::string>& files) {
  Manifest manifest;
  std::string canonical;
  for (const std::string& file : files) {
    FileEntry entry;
    entry.path = file;
    std::error_code error;
    entry.size = fs::file_size(root / file, error);
    auto digest = Sha256File((root / file).string());
    if (!digest.ok()) return digest.status();
    entry.sha256 = *std::move(digest);
    manifest.total_size += entry.size;
    absl::StrAppend(&canonical, entry.sha256, " ", entry.size, " ", entry.path, "\n");
    manifest.files.push_back(std::move(entry));
  }
  manifest.digest = absl::StrCat(kPrefix, Sha256Hex(canonical));
  return manifest;
}

std::string ToJson(const Manifest& manifest) {
  nlohmann::json files = nlohmann::json::array();
  for (const FileEntry& file : manifest.files)
    files.push_back({{"path", file.path}, {"size", file.size}, {"sha256", file.sha256}});
  return nlohmann::json({{"digest", manifest.digest}, {"files", files}}).dump(1) + "\n";
}

}  // namespace

ArtifactRoot::ArtifactRoot(std::string root) : root_(std::move(root)) {}

bool IsHidden(const fs::path& path) {
  return absl::StartsWith(path.filename().string(), ".");
}

absl::StatusOr<Manifest> ComputeManifest(const std::string& path, Origin origin) {
  std::error_code error;
  const fs::path source = path;
  if (origin == Origin::kService && fs::is_symlink(source, error))
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a file or folder, found a symbolic link"));
  if (fs::is_regular_file(source, error)) return ManifestOf(source.parent_path(), {source.filename().string()});
  if (!fs::is_directory(source, error))
    return absl::NotFoundError(absl::StrCat("expected a file or folder at ", path, ", found none"));
  auto files = ListFiles(source, origin);
  if (!files.ok()) return files.status();
  return ManifestOf(source, *files);
}

std::string ArtifactRoot::NewStagingPath() const {
  static std::atomic<uint64_t> counter{0};
  return (fs::path(root_) / kStaging / absl::StrCat(getpid(), "-", counter++, "-", absl::ToUnixNanos(absl::Now())))
      .string();
}

absl::StatusOr<std::string> ArtifactRoot::MakeStaging() const {
  std::string dir = NewStagingPath();
  if (absl::Status status = MakeDirs(dir, kGroupFolder); !status.ok()) return status;
  return dir;
}

int ArtifactRoot::SweepStaging(absl::Duration idle, absl::FunctionRef<bool(const std::string& name)> keep) const {
  return RemoveAbandoned((fs::path(root_) / kStaging).string(), idle, keep);
}

absl::StatusOr<Manifest> ArtifactRoot::Publish(const std::string& source_path) const {
  auto manifest = ComputeManifest(source_path);
  if (!manifest.ok()) return manifest.status();
  // What is there already counts only when it is whole: the same bytes may have been damaged since.
  if (Verify(manifest->digest).ok()) return manifest;
  auto staging = MakeStaging();
  if (!staging.ok()) return staging.status();
  std::error_code error;
  const fs::path source = source_path;
  const fs::path base = fs::is_regular_file(source, error) ? source.parent_path() : source;
  for (const FileEntry& file : manifest->files) {
    const fs::path target = fs::path(*staging) / file.path;
    fs::create_directories(target.parent_path(), error);
    // A copy, not a link: the source may change later, an artifact never.
    if (!fs::copy_file(base / file.path, target, error)) {
      const int number = error.value();
      fs::remove_all(*staging, error);
      return WriteError(number, absl::StrCat("copy ", (base / file.path).string(), " to"), target.string());
    }
  }
  auto published = PublishStaged(*staging);
  // Left behind, each try on a full volume would take more of it.
  if (!published.ok()) fs::remove_all(*staging, error);
  return published;
}

absl::StatusOr<Manifest> ArtifactRoot::PublishStaged(const std::string& staging_dir) const {
  auto files = ListFiles(staging_dir, Origin::kService);
  if (!files.ok()) return files.status();
  auto manifest = ManifestOf(staging_dir, *files);
  if (!manifest.ok()) return manifest.status();
  std::error_code error;
  const fs::path target = fs::path(root_) / "sha256" / manifest->digest.substr(sizeof(kPrefix) - 1);
  if (fs::exists(target, error)) {
    if (Verify(manifest->digest).ok()) {
      fs::remove_all(staging_dir, error);
      return manifest;
    }
    // Damaged since it was published: out of sight in one step, then removed, and the whole one takes its place.
    auto grave = MakeStaging();
    if (!grave.ok()) return grave.status();
    if (rename(target.c_str(), (fs::path(*grave) / "damaged").c_str()) != 0 && errno != ENOENT)
      return MoveError(errno, "replace", target);
    fs::remove_all(*grave, error);
  }
  for (const std::string& file : *files) {
    if (absl::Status status = FsyncFile(fs::path(staging_dir) / file); !status.ok()) return status;
  }
  if (absl::Status status = WriteFileDurably((fs::path(staging_dir) / kManifestName).string(), ToJson(*manifest));
      !status.ok())
    return status;
  for (const auto& entry : fs::recursive_directory_iterator(staging_dir, error)) {
    if (!entry.is_directory()) continue;
    if (absl::Status status = FsyncDir(entry.path().string()); !status.ok()) return status;
  }
  if (absl::Status status = FsyncDir(staging_dir); !status.ok()) return status;
  if (absl::Status status = MakeDirs(target.parent_path().string(), kGroupFolder); !status.ok()) return status;
  if (rename(staging_dir.c_str(), target.c_str()) != 0) {
    const int error_number = errno;
    // Another process published the same bytes first.
    if (fs::exists(target, error)) {
      fs::remove_all(staging_dir, error);
      return manifest;
    }
    return MoveError(error_number, "publish", target);
  }
  if (absl::Status status = FsyncDir(target.parent_path().string()); !status.ok()) return status;
  return manifest;
}

absl::StatusOr<std::string> ArtifactRoot::Path(const std::string& digest) const {
  auto hex = HexOf(digest);
  if (!hex.ok()) return hex.status();
  const fs::path path = fs::path(root_) / "sha256" / *hex;
  std::error_code error;
  if (!fs::exists(path / kManifestName, error))
    return absl::NotFoundError(absl::StrCat("artifact ", digest, " is not in ", root_));
  return path.string();
}

bool ArtifactRoot::Has(const std::string& digest) const {
  return Path(digest).ok();
}

absl::StatusOr<Manifest> ArtifactRoot::GetManifest(const std::string& digest) const {
  auto path = Path(digest);
  if (!path.ok()) return path.status();
  const std::string file = (fs::path(*path) / kManifestName).string();
  auto text = ReadFile(file);
  if (!text.ok()) return text.status();
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  const auto damaged = [&] { return absl::DataLossError(absl::StrCat(file, ": damaged manifest")); };
  if (!json.is_object() || !json.contains("files") || !json["files"].is_array()) return damaged();
  Manifest manifest;
  manifest.digest = digest;
  for (const auto& entry : json["files"]) {
    if (!entry.is_object() || !entry.contains("path") || !entry["path"].is_string() || !entry.contains("size") ||
        !entry["size"].is_number_unsigned() || !entry.contains("sha256") || !entry["sha256"].is_string()) {
      return damaged();
    }
    manifest.files.push_back(
        {entry["path"].get<std::string>(), entry["size"].get<uint64_t>(), entry["sha256"].get<std::string>()});
    manifest.total_size += manifest.files.back().size;
  }
  return manifest;
}

absl::Status ArtifactRoot::Verify(const std::string& digest) const {
  auto path = Path(digest);
  if (!path.ok()) return path.status();
  auto recorded = GetManifest(digest);
  if (!recorded.ok()) return recorded.status();
  std::string canonical;
  for (const FileEntry& file : recorded->files) {
    auto found = Sha256File((fs::path(*path) / file.path).string());
    if (!found.ok() || *found != file.sha256) {
      return absl::DataLossError(absl::StrCat("artifact ", digest, ": file ", file.path, " is missing or damaged"));
    }
    absl::StrAppend(&canonical, file.sha256, " ", file.size, " ", file.path, "\n");
  }
  if (absl::StrCat(kPrefix, Sha256Hex(canonical)) != digest)
    return absl::DataLossError(absl::StrCat("artifact ", digest, ": its manifest is not the one it is named by"));
  return absl::OkStatus();
}

absl::Status ArtifactRoot::Delete(const std::string& digest) const {
  auto path = Path(digest);
  if (!path.ok()) return path.status();
  // Out of sight in one step, then removed.
  auto staging = MakeStaging();
  if (!staging.ok()) return staging.status();
  const fs::path grave = fs::path(*staging) / "deleted";
  if (rename(path->c_str(), grave.c_str()) != 0) return MoveError(errno, "delete", *path);
  std::error_code error;
  fs::remove_all(*staging, error);
  return absl::OkStatus();
}

}  // namespace rlhf::artifact
