#include "coordinator/backup.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/job_state.h"
#include "common/log.h"
#include "common/status_util.h"
#include "coordinator/feedback/import_log_rows.h"
#include "coordinator/volume_watch.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr char kStaging[] = ".backup-";
constexpr char kPayloads[] = "payloads";
constexpr char kRows[] = "state.db";
constexpr int kTries = 3;

// A second copy of the rows comes to the same volume, and rows are written meanwhile.
absl::Status CheckRoom(const std::string& data_dir, uint64_t reserve) {
  uint64_t rows = 0;
  for (const char* suffix : {"", "-wal"}) {
    std::error_code error;
    const uint64_t size = fs::file_size(absl::StrCat(data_dir, "/", kRows, suffix), error);
    if (!error) rows += size;
  }
  const std::optional<VolumeRoom> room = RoomOf(data_dir);
  if (!room) return absl::OkStatus();
  const uint64_t wanted = 2 * rows + reserve;
  if (room->free_bytes >= wanted) return absl::OkStatus();
  return WithVolumeReason(absl::ResourceExhaustedError(absl::StrCat(
      "backup: the disk of ", data_dir, " has ", room->free_bytes >> 20, " MB left, expected at least ", wanted >> 20,
      " MB (twice its rows, which are copied there, and --min-free-mb): make room, or take a snapshot of the volume")));
}

// The files of a folder of the data folder, as far as they are not linked yet. One that goes meanwhile is none that the
// copied rows name (a segment), or is looked for by its row (a log that was rewritten).
absl::Status LinkFiles(const std::string& data_dir, const std::string& folder, absl::string_view suffix,
                       const std::string& dir) {
  const fs::path from = fs::path(data_dir) / folder;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(from, error)) {
    const fs::path link = fs::path(dir) / folder / entry.path().filename();
    if (!absl::EndsWith(entry.path().native(), suffix) || fs::exists(link)) continue;
    fs::create_hard_link(entry.path(), link, error);
    if (error == std::errc::no_such_file_or_directory) error.clear();
    if (error) break;
  }
  if (error) return absl::UnavailableError(absl::StrCat("backup: cannot link ", folder, ": ", error.message()));
  return absl::OkStatus();
}

absl::Status LinkSegments(const std::string& data_dir, const std::string& dir) {
  return LinkFiles(data_dir, kPayloads, ".seg", dir);
}

absl::Status LinkImportLogs(const std::string& data_dir, const std::string& dir) {
  if (std::error_code error; !fs::exists(fs::path(data_dir) / kImportLogFolder, error)) return absl::OkStatus();
  return LinkFiles(data_dir, kImportLogFolder, "", dir);
}

// The logs that the copied rows name, each as far as they say. False when one is missing because it was made and
// rewritten while the rows were copied.
absl::StatusOr<bool> AddImportLogs(StateStore* store, const std::string& dir, std::vector<StagedBackup::File>* files) {
  std::vector<ImportLogRow> logs;
  {
    RLHF_ASSIGN_OR_RETURN(const auto copy, OpenSqliteStore(absl::StrCat(dir, "/", kRows)));
    RLHF_ASSIGN_OR_RETURN(logs, ListImportLogs(copy.get()));
  }
  std::vector<ImportLogRow> now;
  for (const ImportLogRow& log : logs) {
    if (log.length == 0) continue;
    const std::string path = ImportLogPath(log.project, log.set, log.generation);
    std::error_code error;
    const uint64_t size = fs::file_size(absl::StrCat(dir, "/", path), error);
    if (!error && size >= log.length) {
      files->push_back({path, log.length});
      continue;
    }
    if (now.empty()) {
      RLHF_ASSIGN_OR_RETURN(now, ListImportLogs(store));
    }
    const bool rewritten = std::any_of(now.begin(), now.end(), [&log](const ImportLogRow& other) {
      return other.project == log.project && other.set == log.set && other.generation != log.generation;
    });
    if (rewritten) return false;
    // Lost before this: the rest is still worth a backup.
    spdlog::error(
        "backup: {} has {} bytes, expected {}: the comparisons imported as \"{}\" of project {} are not in it", path,
        error ? 0 : size, log.length, log.set, log.project);
  }
  return true;
}

// The rows, and the logs that they name.
absl::Status CopyRows(StateStore* store, const std::string& data_dir, const std::string& dir,
                      std::vector<StagedBackup::File>* files) {
  const std::string rows = absl::StrCat(dir, "/", kRows);
  for (int i = 0; i < kTries; ++i) {
    std::error_code ignored;
    fs::remove(rows, ignored);
    RLHF_RETURN_IF_ERROR(LinkImportLogs(data_dir, dir));
    RLHF_RETURN_IF_ERROR(store->BackUp(rows));
    RLHF_RETURN_IF_ERROR(LinkImportLogs(data_dir, dir));
    std::vector<StagedBackup::File> logs;
    RLHF_ASSIGN_OR_RETURN(const bool whole, AddImportLogs(store, dir, &logs));
    if (!whole) continue;
    files->insert(files->end(), logs.begin(), logs.end());
    return absl::OkStatus();
  }
  return absl::AbortedError("backup: imported comparisons were rewritten all the time (feedback forget); try again");
}

}  // namespace

absl::StatusOr<std::unique_ptr<StagedBackup>> StagedBackup::Make(StateStore* store, const std::string& data_dir,
                                                                 uint64_t reserve) {
  RLHF_RETURN_IF_ERROR(CheckRoom(data_dir, reserve));
  std::unique_ptr<StagedBackup> backup(new StagedBackup());
  std::string dir = absl::StrCat(data_dir, "/", kStaging, "XXXXXX");
  if (mkdtemp(dir.data()) == nullptr)
    return absl::UnavailableError(absl::StrCat("backup: cannot make a folder in ", data_dir));
  backup->dir_ = dir;
  for (const char* folder : {kPayloads, kImportLogFolder})
    RLHF_RETURN_IF_ERROR(MakeDirs(absl::StrCat(dir, "/", folder)));
  // Before the rows, so that no segment that they name can be deleted in between; after them, for those that are new.
  RLHF_RETURN_IF_ERROR(LinkSegments(data_dir, dir));
  RLHF_RETURN_IF_ERROR(CopyRows(store, data_dir, dir, &backup->files_));
  RLHF_RETURN_IF_ERROR(LinkSegments(data_dir, dir));
  backup->files_.push_back({kRows, fs::file_size(absl::StrCat(dir, "/", kRows))});
  for (const auto& entry : fs::directory_iterator(fs::path(dir) / kPayloads))
    backup->files_.push_back({fs::relative(entry.path(), dir).string(), entry.file_size()});
  std::sort(backup->files_.begin(), backup->files_.end(), [](const File& a, const File& b) { return a.path < b.path; });
  return backup;
}

StagedBackup::~StagedBackup() {
  std::error_code ignored;
  if (!dir_.empty()) fs::remove_all(dir_, ignored);
}

void RemoveStaleBackups(const std::string& data_dir) {
  std::error_code ignored;
  std::vector<fs::path> stale;
  for (const auto& entry : fs::directory_iterator(data_dir, ignored)) {
    if (absl::StartsWith(entry.path().filename().string(), kStaging)) stale.push_back(entry.path());
  }
  for (const fs::path& path : stale) fs::remove_all(path, ignored);
}

absl::StatusOr<int> BeginLineagesAfterRestore(StateStore* store, const std::string& data_dir, uint32_t further,
                                              WriteBatch* batch) {
  if (!fs::exists(fs::path(data_dir) / kRestoredFile)) return -1;
  int jobs = 0;
  RLHF_RETURN_IF_ERROR(store->Scan(Table::kJobs, "", [&](absl::string_view key, absl::string_view value) {
    v1::Job job;
    job.ParseFromArray(value.data(), static_cast<int>(value.size()));
    if (IsTerminal(job.state()) || !job.spec().has_ppo()) return true;
    job.mutable_version()->set_lineage(job.version().lineage() + 1 + further);
    batch->Put(Table::kJobs, std::string(key), job.SerializeAsString());
    ++jobs;
    return true;
  }));
  return jobs;
}

absl::Status ForgetRestore(const std::string& data_dir) {
  std::error_code error;
  fs::remove(fs::path(data_dir) / kRestoredFile, error);
  if (error) return absl::UnavailableError(absl::StrCat("cannot remove ", data_dir, "/", kRestoredFile));
  return FsyncDir(data_dir);
}

}  // namespace rlhf::coordinator
