// A copy of the coordinator's state, made while jobs run, and what happens when one is started again.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/store/state_store.h"

namespace rlhf::coordinator {

// The files of a backup, in a staging folder on the data folder's volume; the folder is removed with the object.
class StagedBackup {
 public:
  struct File {
    std::string path;   // relative
    uint64_t size = 0;  // bytes that belong to the backup; payload segments and import logs may grow meanwhile
  };
  // Rows by the store's own copy; payload segments and logs of imported comparisons as hard links. Consistent: payloads
  // are durable before the rows that name them, and segments are only appended to, so all that the copied rows name
  // lies below the sizes taken after the copy; of a log as much belongs to it as its copied row says, and a log that a
  // forgotten rater's removal replaces stays linked. Blocks; not for the loop. ResourceExhausted below twice the rows'
  // size plus `reserve` bytes of free space; Aborted when logs were rewritten all the time; Unavailable when the disk
  // cannot.
  static absl::StatusOr<std::unique_ptr<StagedBackup>> Make(StateStore* store, const std::string& data_dir,
                                                            uint64_t reserve);
  ~StagedBackup();
  const std::string& dir() const { return dir_; }
  const std::vector<File>& files() const { return files_; }

 private:
  StagedBackup() = default;
  std::string dir_;
  std::vector<File> files_;
};

// Removes what a crash left of staging folders. Call before serving.
void RemoveStaleBackups(const std::string& data_dir);

// `rlhfctl service restore` leaves a file in the data folder. Where it is found, the state is older than what workers
// and learners may have seen: every job that trains begins a new lineage, so that nobody takes its next versions for
// the ones that are lost. further: by how much more than one its number grows; drawn by chance, so that of two services
// which start from one backup neither takes the other's versions for its own. Returns how many there were, −1 without a
// restore. Forget the file when that is durable.
absl::StatusOr<int> BeginLineagesAfterRestore(StateStore* store, const std::string& data_dir, uint32_t further,
                                              WriteBatch* batch);
absl::Status ForgetRestore(const std::string& data_dir);
inline constexpr char kRestoredFile[] = "RESTORED";

}  // namespace rlhf::coordinator
