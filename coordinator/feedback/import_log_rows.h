// Which file holds a set's imported comparisons, and how much of it counts: one row a set, moved once an import, or a
// rewriting without a forgotten rater, is on the disk. A rewritten log is the next generation, in a file of its own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/store/state_store.h"

namespace rlhf::coordinator {

inline constexpr char kImportLogRows[] = "comparison_log/";  // prefix in Table::kMeta; then PROJECT/SET, a PayloadRef
inline constexpr char kImportLogFolder[] = "comparisons";    // below the data folder

std::string ImportLogKey(const std::string& project, const std::string& set);
// Relative to the data folder.
std::string ImportLogPath(const std::string& project, const std::string& set, uint32_t generation);

struct ImportLogRow {
  std::string project, set;
  uint32_t generation = 0;
  uint64_t length = 0;  // bytes that count
};
// All sets that were imported into. Any thread; the store's errors.
absl::StatusOr<std::vector<ImportLogRow>> ListImportLogs(StateStore* store);

// Removes logs that no row names, which a process leaves that is killed right after a rater was forgotten: they hold
// what was to go. Before anybody imports.
absl::Status RemoveReplacedLogs(StateStore* store, const std::string& data_dir);

}  // namespace rlhf::coordinator
