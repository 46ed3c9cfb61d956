#include "coordinator/volume_watch.h"

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <utility>

#include <prometheus/gauge.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/log.h"
#include "coordinator/jobs.h"

namespace rlhf::coordinator {

std::optional<VolumeRoom> RoomOf(const std::string& folder) {
  struct statvfs volume {};
  if (statvfs(folder.c_str(), &volume) != 0) return std::nullopt;
  return VolumeRoom{static_cast<uint64_t>(volume.f_bavail) * volume.f_frsize,
                    static_cast<uint64_t>(volume.f_blocks) * volume.f_frsize, (volume.f_flag & ST_RDONLY) != 0};
}

namespace {

constexpr char kArtifactsVolume[] = "artifacts";
constexpr absl::Duration kMostBetweenLooks = absl::Seconds(1);

// Of a folder in which this process may not write; empty when it may. Volumes for several nodes often come as root's:
// the kubelet gives them to a pod's group only where their driver lets it.
std::string NotOursBecause(const std::string& folder) {
  if (access(folder.c_str(), W_OK | X_OK) == 0 || errno != EACCES) return "";
  struct stat status {};
  if (stat(folder.c_str(), &status) != 0) return "";
  return absl::StrFormat(
      "user %d of group %d may not write in %s, which is of user %d and group %d with mode %04o: give it to that user "
      "or group (chown %d:%d, mode 2770)",
      geteuid(), getegid(), folder, status.st_uid, status.st_gid, status.st_mode & 07777, geteuid(), getegid());
}

}  // namespace

struct VolumeWatch::Volume {
  std::string name, folder;
  prometheus::Gauge& unanswered_seconds;
  bool looking = false, looked = false;
  absl::Duration unanswered = absl::ZeroDuration();  // by the look that goes on
  VolumeTrouble trouble;                             // of the last look that is over
  std::unique_ptr<Background> thread = Background::StartThreads(1);
};

VolumeWatch::VolumeWatch(Folders folders, int min_free_mb, MetricsRegistry* metrics, const Clock* clock,
                         std::function<void(const VolumeTrouble&)> found, absl::Duration unanswered_after)
    : min_free_mb_(min_free_mb),
      metrics_(metrics),
      clock_(clock),
      found_(std::move(found)),
      unanswered_after_(unanswered_after) {
  for (auto& [name, folder] : folders) {
    prometheus::Gauge& gauge =
        metrics_->Gauge("rlhf_volume_unanswered_seconds",
                        "How long a volume has not answered a look at it; 0: it answers.", {{"volume", name}});
    volumes_.emplace_back(new Volume{std::move(name), std::move(folder), gauge});
  }
}
VolumeWatch::~VolumeWatch() {
  for (const auto& volume : volumes_) volume->thread.reset();
}

void VolumeWatch::Look(const std::function<bool()>& artifacts_there) {
  absl::MutexLock lock(&mu_);
  const absl::Duration now = clock_->Now();
  const absl::Duration passed = std::min(now - std::exchange(looked_, now), kMostBetweenLooks);
  bool hangs = false;
  for (const std::unique_ptr<Volume>& each : volumes_) {
    Volume* const volume = each.get();
    if (volume->looking) {
      volume->unanswered += passed;
      volume->unanswered_seconds.Set(absl::ToDoubleSeconds(volume->unanswered));
      hangs = hangs || volume->unanswered >= unanswered_after_;
      continue;
    }
    volume->looking = true;
    const bool full = volume->trouble.code == kDiskFull;
    volume->thread->Run([this, volume, full, artifacts_there] {
      VolumeTrouble trouble = LookNow(*volume, full, artifacts_there);
      absl::MutexLock lock(&mu_);
      volume->trouble = std::move(trouble);
      volume->looked = true;
      volume->looking = false;
      volume->unanswered = absl::ZeroDuration();
      volume->unanswered_seconds.Set(0);
      Tell();
    });
  }
  if (hangs) Tell();
}

std::string VolumeWatch::Hanging() const {
  absl::MutexLock lock(&mu_);
  for (const auto& volume : volumes_)
    if (volume->unanswered >= unanswered_after_) return volume->folder;
  return "";
}

void VolumeWatch::Tell() {
  VolumeTrouble told;
  for (const auto& volume : volumes_) {
    if (volume->unanswered >= unanswered_after_) {
      // Without the seconds: it would be another reason at each look.
      told = {absl::StrCat("the volume of ", volume->folder, " does not answer"), kDiskHangs};
      break;
    }
    if (!volume->looked) return;  // it may be in trouble: nobody goes on yet
    // Room that is missing says less than that nothing can be written.
    if (told.why.empty() || (told.code == kDiskFull && !volume->trouble.why.empty())) told = volume->trouble;
  }
  if (std::exchange(code_, told.code) != told.code)
    spdlog::warn("{}", told.why.empty() ? "the disks can be written to again: jobs go on" : told.why + ": jobs pause");
  found_(told);
}

VolumeTrouble VolumeWatch::LookNow(const Volume& volume, bool full,
                                   const std::function<bool()>& artifacts_there) const {
  const std::string& folder = volume.folder;
  const bool there = volume.name != kArtifactsVolume || artifacts_there();
  const std::optional<VolumeRoom> room = RoomOf(folder);
  if (room) {
    metrics_->Gauge("rlhf_volume_free_bytes", "Space left for this process on a volume.", {{"volume", volume.name}})
        .Set(static_cast<double>(room->free_bytes));
    metrics_->Gauge("rlhf_volume_size_bytes", "Size of a volume.", {{"volume", volume.name}})
        .Set(static_cast<double>(room->size_bytes));
  }
  if (!there)
    return {absl::StrCat(folder, " holds none of the artifacts that are known: is its volume mounted?"), kDiskReadOnly};
  if (!room) return {};
  if (room->read_only) return {absl::StrCat("the volume of ", folder, " is read-only"), kDiskReadOnly};
  if (std::string why = NotOursBecause(folder); !why.empty()) return {std::move(why), kDiskReadOnly};
  const uint64_t least = static_cast<uint64_t>(min_free_mb_) << 20;
  const uint64_t wanted = full ? least + least / 4 : least;
  if (room->free_bytes >= wanted) return {};
  return {absl::StrCat("the disk of ", folder, " is full: ", room->free_bytes >> 20, " MB left, expected at least ",
                       wanted >> 20, " MB (--min-free-mb)"),
          kDiskFull};
}

}  // namespace rlhf::coordinator
