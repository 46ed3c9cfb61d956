// The artifact root: immutable directories known by digest, in one local folder or shared volume.
//
// Layout: ROOT/sha256/<hex>/… (the files) and ROOT/sha256/<hex>/.manifest.json; staging under ROOT/.staging. An
// artifact is a directory of regular files (a single file is a directory of one). Its digest is the SHA-256 of its
// canonical manifest: lines "<sha256 of file> <size> <relative path>\n" sorted by path. Written as "sha256:<hex>".
//
// Thread-safe, and safe between processes: publication is one rename of a fully fsynced directory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace rlhf::artifact {

struct FileEntry {
  std::string path;  // relative, '/'-separated, no "..", no leading '/' or '.'
  uint64_t size = 0;
  std::string sha256;
};

struct Manifest {
  std::string digest;  // "sha256:<hex>"
  uint64_t total_size = 0;
  std::vector<FileEntry> files;  // sorted by path
};

class ArtifactRoot {
 public:
  explicit ArtifactRoot(std::string root);
  const std::string& root() const { return root_; }

  // Copies (hard-links where possible) a file or directory in, fsynced, and publishes it. Publishing what is there
  // already is a no-op that returns the same manifest.
  absl::StatusOr<Manifest> Publish(const std::string& source_path) const;
  // A fresh staging directory on the same file system; fill it, then PublishStaged (which consumes it).
  absl::StatusOr<std::string> MakeStaging() const;
  // Where the next one would be, which is not made. Touches no disk.
  std::string NewStagingPath() const;
  absl::StatusOr<Manifest> PublishStaged(const std::string& staging_dir) const;
  // Removes staging folders in which nothing was written for `idle`, of any process that uses the root, but those that
  // `keep` wants by their names. Returns how many.
  int SweepStaging(absl::Duration idle, absl::FunctionRef<bool(const std::string& name)> keep) const;

  // The directory of a published artifact; NotFound naming the digest and the root.
  absl::StatusOr<std::string> Path(const std::string& digest) const;
  absl::StatusOr<Manifest> GetManifest(const std::string& digest) const;
  // Re-hashes every file: DataLoss naming the first file that differs.
  absl::Status Verify(const std::string& digest) const;
  absl::Status Delete(const std::string& digest) const;
  bool Has(const std::string& digest) const;

 private:
  std::string root_;
};

// Whose files become an artifact.
enum class Origin {
  // A folder that a role reads, and that others may be able to write: a link in it could bring in any file of the
  // role's, so links are refused.
  kService,
  // A folder that a program reads for the user who runs it, such as what Hugging Face's downloader makes: links to
  // regular files are followed, and what is hidden is no part of the artifact.
  kUser,
};

// Whether a user's file or folder is hidden (.cache, .git, .gitattributes), by its own name.
bool IsHidden(const std::filesystem::path& path);

// Computes the manifest of a file or directory without publishing it. InvalidArgument for what is no regular file, and
// for a link to a folder or to nothing, also of a user's.
absl::StatusOr<Manifest> ComputeManifest(const std::string& path, Origin origin = Origin::kService);

}  // namespace rlhf::artifact
