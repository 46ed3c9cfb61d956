#include "coordinator/feedback/import_log_rows.h"

#include <filesystem>
#include <set>

#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "common/status_util.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {
namespace {

namespace fs = std::filesystem;

}  // namespace

std::string ImportLogKey(const std::string& project, const std::string& set) {
  return absl::StrCat(kImportLogRows, project, "/", set);
}

std::string ImportLogPath(const std::string& project, const std::string& set, uint32_t generation) {
  // A set's name may have slashes.
  return absl::StrCat(kImportLogFolder, "/", artifact::Sha256Hex(absl::StrCat(project, "/", set)).substr(0, 32), ".",
                      generation);
}

absl::StatusOr<std::vector<ImportLogRow>> ListImportLogs(StateStore* store) {
  std::vector<ImportLogRow> rows;
  const auto read = [&rows](absl::string_view key, absl::string_view value) {
    v1::PayloadRef end;
    end.ParseFromArray(value.data(), static_cast<int>(value.size()));
    const std::string name(key.substr(sizeof(kImportLogRows) - 1));
    const size_t slash = name.find('/');
    ImportLogRow& row = rows.emplace_back();
    row.project = name.substr(0, slash);
    row.set = name.substr(slash + 1);
    row.generation = end.segment();
    row.length = end.offset();
    return true;
  };
  RLHF_RETURN_IF_ERROR(store->Scan(Table::kMeta, kImportLogRows, read));
  return rows;
}

absl::Status RemoveReplacedLogs(StateStore* store, const std::string& data_dir) {
  RLHF_ASSIGN_OR_RETURN(const std::vector<ImportLogRow> logs, ListImportLogs(store));
  std::set<std::string> named;
  for (const ImportLogRow& log : logs) named.insert(ImportLogPath(log.project, log.set, log.generation));
  std::vector<fs::path> replaced;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(fs::path(data_dir) / kImportLogFolder, error)) {
    const std::string path = absl::StrCat(kImportLogFolder, "/", entry.path().filename().string());
    if (entry.is_regular_file() && named.count(path) == 0) replaced.push_back(entry.path());
  }
  for (const fs::path& path : replaced) {
    fs::remove(path, error);
    if (error) return absl::UnavailableError(absl::StrCat("cannot remove ", path.string(), ": ", error.message()));
  }
  return absl::OkStatus();
}

}  // namespace rlhf::coordinator
