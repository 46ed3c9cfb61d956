#include "coordinator/volume_watch.h"

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
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

void VolumeWatch::Look(std::function<bool()> artifacts_there) {
  if (looking_.exchange(true)) return;
  thread_->Run([this, artifacts_there = std::move(artifacts_there)] {
    const VolumeTrouble trouble = LookNow(artifacts_there);
    const bool any = !trouble.why.empty();
    if (std::exchange(trouble_, any) != any)
      spdlog::warn("{}", any ? trouble.why + ": jobs pause" : "the disks can be written to again: jobs go on");
    found_(trouble);
    looking_ = false;
  });
}

VolumeTrouble VolumeWatch::LookNow(const std::function<bool()>& artifacts_there) {
  VolumeTrouble trouble;
  for (const auto& [volume, folder] : folders_) {
    if (volume == kArtifactsVolume && !artifacts_there()) {
      trouble.why = absl::StrCat(folder, " holds none of the artifacts that are known: is its volume mounted?");
      trouble.code = kDiskReadOnly;
    }
    const std::optional<VolumeRoom> room = RoomOf(folder);
    if (!room) continue;
    metrics_->Gauge("rlhf_volume_free_bytes", "Space left for this process on a volume.", {{"volume", volume}})
        .Set(static_cast<double>(room->free_bytes));
    metrics_->Gauge("rlhf_volume_size_bytes", "Size of a volume.", {{"volume", volume}})
        .Set(static_cast<double>(room->size_bytes));
    if (trouble.code == kDiskReadOnly) continue;
    const uint64_t least = static_cast<uint64_t>(min_free_mb_) << 20;
    const uint64_t wanted = trouble_ ? least + least / 4 : least;
    if (room->read_only) {
      trouble.why = absl::StrCat("the volume of ", folder, " is read-only");
      trouble.code = kDiskReadOnly;
    } else if (std::string why = NotOursBecause(folder); !why.empty()) {
      trouble.why = std::move(why);
      trouble.code = kDiskReadOnly;
    } else if (room->free_bytes < wanted) {
      trouble.why = absl::StrCat("the disk of ", folder, " is full: ", room->free_bytes >> 20,
                                 " MB left, expected at least ", wanted >> 20, " MB (--min-free-mb)");
      trouble.code = kDiskFull;
    }
  }
  return trouble;
}

}  // namespace rlhf::coordinator
