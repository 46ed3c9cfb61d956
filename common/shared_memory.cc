#include "common/shared_memory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/durable_file.h"

namespace rlhf {
namespace {

constexpr absl::string_view kPrefix = "rlhf-weights-";
constexpr size_t kRandomBytes = 16;

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

bool IsName(absl::string_view name) {
  if (!absl::ConsumePrefix(&name, kPrefix) || name.size() != 2 * kRandomBytes) return false;
  return name.find_first_not_of("0123456789abcdef") == absl::string_view::npos;
}

absl::StatusOr<std::string> NewName() {
  std::string random(kRandomBytes, '\0');
  if (getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size()))
    return absl::ErrnoToStatus(errno, "getrandom");
  return absl::StrCat(kPrefix, absl::BytesToHexString(random));
}

// Reserved, or nothing is: a write into a mapping of what is not there would end the process.
absl::Status Reserve(int fd, uint64_t size, const std::string& path) {
  struct statvfs volume = {};
  if (fstatvfs(fd, &volume) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("statvfs of ", path));
  const uint64_t room = static_cast<uint64_t>(volume.f_bavail) * volume.f_frsize;
  if (size > room / 2) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": expected at most half of the ", room, " bytes that are free, found ", size));
  }
  const int error = posix_fallocate(fd, 0, static_cast<off_t>(size));
  return error == 0 ? absl::OkStatus() : WriteError(error, "reserve", path);
}

}  // namespace

std::string HostIdentity() {
  const absl::StatusOr<std::string> id = ReadFile("/proc/sys/kernel/random/boot_id");
  return id.ok() ? std::string(absl::StripAsciiWhitespace(*id)) : "";
}

std::string SharedMemoryDirOf(const std::string& flag) {
  if (flag == "none") return "";
  if (!flag.empty()) return flag;
  return access(kSharedMemoryDir, R_OK | W_OK | X_OK) == 0 ? kSharedMemoryDir : "";
}

absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::Create(const std::string& dir, uint64_t size) {
  if (size == 0) return absl::InvalidArgumentError("shared memory: expected a size above 0, found 0");
  absl::StatusOr<std::string> name = NewName();
  if (!name.ok()) return name.status();
  const std::string path = absl::StrCat(dir, "/", *name);
  const int fd = open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return WriteError(errno, "create", path);
  std::unique_ptr<SharedMemory> memory(new SharedMemory(path, *std::move(name), fd));  // removes it from here on
  // Whoever finds it unlocked takes it for one that a dead process left; see RemoveStaleSharedMemory.
  if (flock(fd, LOCK_SH | LOCK_NB) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot lock ", path));
  if (const absl::Status reserved = Reserve(fd, size, path); !reserved.ok()) return reserved;
  void* const address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) return absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", path));
  memory->bytes_ = absl::MakeSpan(static_cast<uint8_t*>(address), size);
  // Nobody else is to write or truncate it, by mistake or not.
  if (fchmod(fd, 0400) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("chmod of ", path));
  return memory;
}

SharedMemory::~SharedMemory() {
  if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
  unlink(path_.c_str());
  close(fd_);
}

absl::StatusOr<std::shared_ptr<const MappedMemory>> MappedMemory::Open(const std::string& dir, const std::string& name,
                                                                       uint64_t size) {
  if (!IsName(name) || size == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected the name of a file in ", dir, " and its size, found \"", name, "\" of ", size));
  }
  const std::string path = absl::StrCat(dir, "/", name);
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (file.get() < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  struct stat found = {};
  if (fstat(file.get(), &found) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("stat of ", path));
  const bool ours = S_ISREG(found.st_mode) && found.st_uid == geteuid() && (found.st_mode & 077) == 0;
  // Of a hole nobody knows whether there is room for it.
  const bool whole =
      static_cast<uint64_t>(found.st_size) == size && static_cast<uint64_t>(found.st_blocks) * 512 >= size;
  if (!ours || !whole) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": expected ", size, " bytes, all there, in a file for user ", geteuid(), " alone, found ",
                     found.st_size, " bytes, ", found.st_blocks * 512, " of them there, of user ", found.st_uid));
  }
  // Not MAP_POPULATE: that goes page by page on one thread, where the faults of those who read map sixteen at a time.
  void* const address = mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), 0);
  if (address == MAP_FAILED) return absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", path));
  return std::shared_ptr<const MappedMemory>(
      new MappedMemory(absl::MakeConstSpan(static_cast<const uint8_t*>(address), size)));
}

MappedMemory::~MappedMemory() {
  munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size());  // NOLINT(cppcoreguidelines-pro-type-const-cast)
}

int RemoveStaleSharedMemory(const std::string& dir) {
  DIR* const folder = opendir(dir.c_str());
  if (folder == nullptr) return 0;
  std::vector<std::string> paths;
  while (const dirent* entry = readdir(folder)) {
    if (IsName(entry->d_name)) paths.push_back(absl::StrCat(dir, "/", entry->d_name));
  }
  closedir(folder);
  int removed = 0;
  for (const std::string& path : paths) {
    const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    struct stat found = {};
    if (file.get() < 0 || fstat(file.get(), &found) != 0 || found.st_uid != geteuid()) continue;
    // The owner's lock ends with its process, however that ended. One that is being made, and has no lock yet, may be
    // taken for stale: then its readers get it over the network.
    if (flock(file.get(), LOCK_EX | LOCK_NB) == 0 && unlink(path.c_str()) == 0) ++removed;
  }
  return removed;
}

}  // namespace rlhf
