// One coordinator a data folder: an advisory lock that ends with the process, however it ends.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace rlhf::coordinator {

class DataDirLock {
 public:
  // FailedPrecondition naming the folder and the process that has it. `shared`: beside others that take it so (who of
  // them leads is decided elsewhere), and never beside one that does not.
  static absl::StatusOr<std::unique_ptr<DataDirLock>> Take(const std::string& data_dir, bool shared = false);
  ~DataDirLock();

 private:
  explicit DataDirLock(int fd) : fd_(fd) {}
  const int fd_;
};

}  // namespace rlhf::coordinator
