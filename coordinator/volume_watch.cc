#include "coordinator/volume_watch.h"

#include <sys/statvfs.h>

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "coordinator/jobs.h"

namespace rlhf::coordinator {

std::optional<VolumeRoom> RoomOf(const std::string& folder) {
  struct statvfs volume {};
  if (statvfs(folder.c_str(), &volume) != 0) return std::nullopt;
  return VolumeRoom{static_cast<uint64_t>(volume.f_bavail) * volume.f_frsize,
                    static_cast<uint64_t>(volume.f_blocks) * volume.f_frsize, (volume.f_flag & ST_RDONLY) != 0};
}

VolumeTrouble LookAtVolumes(const std::vector<std::string>& folders, int min_free_mb, bool was_full) {
  VolumeTrouble trouble;
  for (const std::string& folder : folders) {
    const std::optional<VolumeRoom> room = RoomOf(folder);
    if (!room) continue;
    trouble.rooms[folder] = *room;
    if (trouble.code == kDiskReadOnly) continue;
    const uint64_t least = static_cast<uint64_t>(min_free_mb) << 20;
    const uint64_t wanted = was_full ? least + least / 4 : least;
    if (room->read_only) {
      trouble.why = absl::StrCat("the volume of ", folder, " is read-only");
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
