// What the coordinator does with its volumes before it serves. Each may hang, as an NFS server's does that is away: the
// process says so, and ends when it is told to.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/data_dir_lock.h"

namespace rlhf::coordinator {

// Whether the folder's volume answers within `patience`; of one that does not, a thread is left behind that waits for
// it. Any thread.
bool Answers(const std::string& folder, absl::Duration patience);

// Makes the folder, its owner's alone, and locks it. `stop` is asked meanwhile, and may be null; Cancelled once it
// returned true. `shared`: as DataDirLock::Take.
absl::StatusOr<std::unique_ptr<DataDirLock>> TakeDataDir(const std::string& data_dir, bool shared,
                                                         const std::function<bool()>& stop);
// Makes the artifact root. `hangs` is called once where its volume does not answer; `stop` as above.
absl::Status MakeArtifactRoot(const std::string& root, const std::function<bool()>& stop,
                              const std::function<void()>& hangs);

}  // namespace rlhf::coordinator
