// What room volumes have, and whether the coordinator's can be written to.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/metrics.h"
#include "coordinator/event_loop.h"

namespace rlhf::coordinator {

struct VolumeRoom {
  uint64_t free_bytes = 0;  // for this process
  uint64_t size_bytes = 0;
  bool read_only = false;
};
// Of a folder's volume; nothing when nobody can say. Any thread; a volume that hangs blocks it.
std::optional<VolumeRoom> RoomOf(const std::string& folder);

struct VolumeTrouble {
  std::string why;   // for people, with the folder; empty: all can be written to
  std::string code;  // kDiskFull or kDiskReadOnly (jobs.h)
};

// Looks at volumes on a thread of its own: one that hangs holds up nobody, and jobs have to pause for want of room
// while a backup takes it. Thread-safe.
//
// A volume is full below `min_free_mb` megabytes, and, once it was, until there are a quarter more: jobs that go on
// would pause again at once. A folder in which this process may not write counts as read-only, and so does a root that
// holds none of the artifacts that are known: its volume is not mounted. One that cannot be looked at is left out.
class VolumeWatch {
 public:
  using Folders = std::vector<std::pair<std::string, std::string>>;  // the volume's name in metrics, a folder of it
  // `found` is called with what every look found, on the watch's thread. Ends with the look that is going on.
  VolumeWatch(Folders folders, int min_free_mb, MetricsRegistry* metrics,
              std::function<void(const VolumeTrouble&)> found)
      : folders_(std::move(folders)), min_free_mb_(min_free_mb), metrics_(metrics), found_(std::move(found)) {}
  // Returns at once; nothing happens while the look before is not over. `artifacts_there` (Artifacts::RootProbe) is
  // called on the watch's thread.
  void Look(std::function<bool()> artifacts_there);

 private:
  VolumeTrouble LookNow(const std::function<bool()>& artifacts_there);

  const Folders folders_;
  const int min_free_mb_;
  MetricsRegistry* const metrics_;
  const std::function<void(const VolumeTrouble&)> found_;
  std::atomic<bool> looking_{false};
  bool trouble_ = false;  // at the last look
  const std::unique_ptr<Background> thread_ = Background::StartThreads(1);
};

}  // namespace rlhf::coordinator
