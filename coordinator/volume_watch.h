// What room volumes have, and whether the coordinator's can be written to.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
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
  std::string code;  // kDiskFull, kDiskReadOnly or kDiskHangs (jobs.h)
};

// Looks at volumes, each on a thread of its own: one that hangs holds up nobody, not even the look at another, and jobs
// have to pause for want of room while a backup takes it. Thread-safe.
//
// A volume is full below `min_free_mb` megabytes, and, once it was, until there are a quarter more: jobs that go on
// would pause again at once. A folder in which this process may not write counts as read-only, and so does a root that
// holds none of the artifacts that are known: its volume is not mounted. One that cannot be looked at is left out. One
// that does not answer a look for `unanswered_after` hangs, whatever it was before, until it answers.
class VolumeWatch {
 public:
  using Folders = std::vector<std::pair<std::string, std::string>>;  // the volume's name in metrics, a folder of it
  static constexpr absl::Duration kUnansweredAfter = absl::Seconds(10);
  // `found` is called with what all looks found last, once every volume was looked at or hangs, in the order in which
  // it was found: on the watch's threads or in Look. It must return at once. The destructor waits for the looks that go
  // on, a hanging one too.
  VolumeWatch(Folders folders, int min_free_mb, MetricsRegistry* metrics, const Clock* clock,
              std::function<void(const VolumeTrouble&)> found, absl::Duration unanswered_after = kUnansweredAfter);
  ~VolumeWatch();
  // Call it a few times a second: no time counts in which it was not called, for this process may have stood still.
  // Returns at once; a volume whose look is not over is not looked at again. `artifacts_there` (Artifacts::RootProbe)
  // is called on the watch's thread.
  void Look(const std::function<bool()>& artifacts_there);
  // The folder of a volume that hangs now; empty: none does.
  std::string Hanging() const;

 private:
  struct Volume;

  // Of a look that is over; `full`: whether it was at the one before.
  VolumeTrouble LookNow(const Volume& volume, bool full, const std::function<bool()>& artifacts_there) const;
  void Tell() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int min_free_mb_;
  MetricsRegistry* const metrics_;
  const Clock* const clock_;
  const std::function<void(const VolumeTrouble&)> found_;
  const absl::Duration unanswered_after_;
  mutable absl::Mutex mu_;
  absl::Duration looked_ ABSL_GUARDED_BY(mu_) = absl::ZeroDuration();  // the last call of Look
  std::string code_ ABSL_GUARDED_BY(mu_);                              // told last
  std::vector<std::unique_ptr<Volume>> volumes_;                       // what changes in them is guarded by mu_
};

}  // namespace rlhf::coordinator
