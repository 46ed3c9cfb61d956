// What room volumes have, and whether the coordinator's can be written to.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace rlhf::coordinator {

struct VolumeRoom {
  uint64_t free_bytes = 0;  // for this process
  uint64_t size_bytes = 0;
  bool read_only = false;
};
// Of a folder's volume; nothing when nobody can say. Any thread; a volume that hangs blocks it.
std::optional<VolumeRoom> RoomOf(const std::string& folder);

struct VolumeTrouble {
  std::string why;                               // for people, with the folder; empty: all can be written to
  std::string code;                              // kDiskFull or kDiskReadOnly (jobs.h)
  std::map<std::string, VolumeRoom> rooms = {};  // by folder

  bool any() const { return !why.empty(); }
};

// A volume is full below `min_free_mb` megabytes, and, once it was, until there are a quarter more: jobs that go on
// would pause again at once. A folder that cannot be looked at is left out. Any thread; a volume that hangs blocks it.
VolumeTrouble LookAtVolumes(const std::vector<std::string>& folders, int min_free_mb, bool was_full);

}  // namespace rlhf::coordinator
