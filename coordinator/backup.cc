#include "coordinator/backup.h"

#include <unistd.h>

#include <filesystem>
#include <map>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/job_state.h"
#include "common/log.h"
#include "common/status_util.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr char kStaging[] = ".backup-";
constexpr char kPayloads[] = "payloads";

absl::Status LinkSegments(const std::string& data_dir, const std::string& dir) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(fs::path(data_dir) / kPayloads, error)) {
    const fs::path link = fs::path(dir) / kPayloads / entry.path().filename();
    if (entry.path().extension() != ".seg" || fs::exists(link)) continue;
    fs::create_hard_link(entry.path(), link, error);
    if (error) break;
  }
  if (error) return absl::UnavailableError(absl::StrCat("backup: cannot link payloads: ", error.message()));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<StagedBackup>> StagedBackup::Make(StateStore* store, const std::string& data_dir) {
  std::unique_ptr<StagedBackup> backup(new StagedBackup());
  std::string dir = absl::StrCat(data_dir, "/", kStaging, "XXXXXX");
  if (mkdtemp(dir.data()) == nullptr)
    return absl::UnavailableError(absl::StrCat("backup: cannot make a folder in ", data_dir));
  backup->dir_ = dir;
  RLHF_RETURN_IF_ERROR(MakeDirs(absl::StrCat(dir, "/", kPayloads)));
  // Before the rows, so that no segment that they name can be deleted in between; after them, for those that are new.
  RLHF_RETURN_IF_ERROR(LinkSegments(data_dir, dir));
  RLHF_RETURN_IF_ERROR(store->BackUp(absl::StrCat(dir, "/state.db")));
  RLHF_RETURN_IF_ERROR(LinkSegments(data_dir, dir));
  std::map<std::string, uint64_t> files;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) {
    if (entry.is_regular_file()) files[fs::relative(entry.path(), dir).string()] = entry.file_size();
  }
  for (const auto& [path, size] : files) backup->files_.push_back({path, size});
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

absl::StatusOr<int> BeginLineagesAfterRestore(StateStore* store, const std::string& data_dir, WriteBatch* batch) {
  if (!fs::exists(fs::path(data_dir) / kRestoredFile)) return -1;
  int jobs = 0;
  RLHF_RETURN_IF_ERROR(store->Scan(Table::kJobs, "", [&](absl::string_view key, absl::string_view value) {
    v1::Job job;
    job.ParseFromArray(value.data(), static_cast<int>(value.size()));
    if (IsTerminal(job.state()) || !job.spec().has_ppo()) return true;
    job.mutable_version()->set_lineage(job.version().lineage() + 1);
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
