// A backup as files: FOLDER/state.db, FOLDER/payloads/*.seg and FOLDER/backup.json, the manifest, which is written
// last.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "rlhf/v1/admin_service.pb.h"

namespace rlhf::cli {

// Writes the stream of AdminService.Backup under FOLDER.partial, which becomes FOLDER when it is complete, checked
// against the manifest's digests, and on disk. What fails leaves nothing behind.
class BackupWriter {
 public:
  // AlreadyExists when there is such a folder.
  static absl::StatusOr<std::unique_ptr<BackupWriter>> Begin(const std::string& folder);
  ~BackupWriter();
  absl::Status Take(const v1::BackupChunk& chunk);
  // DataLoss when a file is missing, short or altered, or the manifest has not come.
  absl::StatusOr<v1::BackupManifest> Finish();

 private:
  explicit BackupWriter(std::string folder) : folder_(std::move(folder)), partial_(folder_ + ".partial") {}
  absl::Status CloseFile();

  const std::string folder_, partial_;
  std::FILE* file_ = nullptr;
  std::string path_;
  v1::BackupManifest manifest_;
  bool complete_ = false;
};

// FailedPrecondition when data_dir has anything in it; DataLoss when the backup is not what its manifest says.
absl::Status RestoreBackup(const std::string& folder, const std::string& data_dir);

}  // namespace rlhf::cli
