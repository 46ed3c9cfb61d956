// What killed processes leave behind on disks: folders that were being filled.
#pragma once

#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace rlhf {

// Removes the entries of `dir` in which nothing, at any depth, was written for `idle`, by the files' own times against
// what the volume takes for now, to which the folder's own is set: who writes may be on another machine, whose clock,
// or the volume's, is not this one's. Those that `keep` wants stay. Returns how many went; 0 without the folder, or
// where it may not be written. Any thread; blocks on the disk.
int RemoveAbandoned(const std::string& dir, absl::Duration idle, absl::FunctionRef<bool(const std::string& name)> keep);

// A folder in which a process stages what it writes, and which holds nothing that a later process wants. Processes that
// are given the same one share it.
class WorkFolder {
 public:
  // Makes it, and empties it unless another process uses it. Held until the object ends; a killed process holds
  // nothing. The volume's errors.
  static absl::StatusOr<std::unique_ptr<WorkFolder>> Take(const std::string& dir);
  ~WorkFolder();
  int removed() const { return removed_; }

 private:
  WorkFolder(int fd, int removed) : fd_(fd), removed_(removed) {}
  const int fd_;
  const int removed_;  // entries that were there
};

}  // namespace rlhf
