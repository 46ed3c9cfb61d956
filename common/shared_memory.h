// Memory that processes of one host and one user share: files of a folder in memory (/dev/shm). One process makes and
// fills such a file and removes it; others map it.
//
// A file can be read by its user alone and opened for writing by nobody, has a name that cannot be guessed, and all of
// its room is reserved when it is made: a full folder is an error then, and never SIGBUS later.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace rlhf {

inline constexpr const char kSharedMemoryDir[] = "/dev/shm";

// Equal in all processes of a host, containers too, until it is booted; empty where the kernel does not say.
std::string HostIdentity();
// What a --shm-dir flag says: "none" is no folder, and "" is kSharedMemoryDir where it can be written.
std::string SharedMemoryDirOf(const std::string& flag);

// A file that this process has made. It is removed with this object; after SIGKILL, by RemoveStaleSharedMemory.
class SharedMemory {
 public:
  // In `dir`, of `size` > 0 bytes, zeros. ResourceExhausted when that is more than half of what is free there: others
  // (collectives) need it too.
  static absl::StatusOr<std::unique_ptr<SharedMemory>> Create(const std::string& dir, uint64_t size);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  absl::Span<uint8_t> bytes() const { return bytes_; }
  const std::string& name() const { return name_; }  // in its folder

 private:
  SharedMemory(std::string path, std::string name, int fd) : path_(std::move(path)), name_(std::move(name)), fd_(fd) {}

  const std::string path_, name_;
  const int fd_;  // holds a lock that says that the owner lives
  absl::Span<uint8_t> bytes_;
};

// A file that another process has made, for reading. It stays readable here when it is removed.
class MappedMemory {
 public:
  // NotFound: there is no such file in `dir` (any more). FailedPrecondition: it is no such file of this user, of `size`
  // bytes. InvalidArgument: no name of such a file.
  static absl::StatusOr<std::shared_ptr<const MappedMemory>> Open(const std::string& dir, const std::string& name,
                                                                  uint64_t size);
  ~MappedMemory();
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;

  absl::Span<const uint8_t> bytes() const { return bytes_; }

 private:
  explicit MappedMemory(absl::Span<const uint8_t> bytes) : bytes_(bytes) {}
  const absl::Span<const uint8_t> bytes_;
};

// Removes what processes of this user that are gone have left in `dir`; how many files.
int RemoveStaleSharedMemory(const std::string& dir);

}  // namespace rlhf
