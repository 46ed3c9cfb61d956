// A library to preload: keeps, beside a process's files, what of them would be left after a loss of power.
//
// UNSYNCED_ROOT is the folder whose files are watched, UNSYNCED_SHADOW where the durable images go: the file
// SHADOW/INODE holds a file's bytes as of its last fsync or fdatasync (all of them at the first, then only what was
// written since), and
// SHADOW/names.DIRECTORY-INODE the names of a folder as of its last fsync, "INODE NAME" a line. A rename, a new name or
// a removed one that no fsync of the folder followed is not there. An fsync of a path that holds the text
// UNSYNCED_FORGET counts as forgotten: so a test shows that it would see one that is missing. Memory maps are not
// watched: SQLite keeps nothing durable in them.
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace {

template <typename Fn>
Fn Real(const char* name) {
  return reinterpret_cast<Fn>(dlsym(RTLD_NEXT, name));
}

ssize_t RealPwrite(int fd, const void* data, size_t size, off64_t at) {
  static const auto real = Real<ssize_t (*)(int, const void*, size_t, off64_t)>("pwrite64");
  return real(fd, data, size, at);
}

struct Watched {
  std::vector<std::pair<uint64_t, uint64_t>> dirty;  // [begin, end)
};

std::mutex& Mutex() {
  static auto* const mutex = new std::mutex;
  return *mutex;
}
std::map<ino_t, Watched>& Files() {
  static auto* const files = new std::map<ino_t, Watched>;
  return *files;
}
const char* Root() {
  static const char* const root = std::getenv("UNSYNCED_ROOT");
  return root;
}

// The inode of a file or folder below the root; 0 for every other.
ino_t InodeOf(int fd, bool* folder, bool syncs = false) {
  if (Root() == nullptr) return 0;
  char link[64], path[4096];
  std::snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, path, sizeof(path) - 1);
  if (size <= 0) return 0;
  path[size] = '\0';
  if (std::strncmp(path, Root(), std::strlen(Root())) != 0) return 0;
  const char* const forget = std::getenv("UNSYNCED_FORGET");
  if (syncs && forget != nullptr && std::strstr(path, forget) != nullptr) return 0;
  struct stat info;
  if (fstat(fd, &info) != 0 || (!S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode))) return 0;
  *folder = S_ISDIR(info.st_mode);
  return info.st_ino;
}

std::string ShadowOf(const char* kind, ino_t inode) {
  return std::string(std::getenv("UNSYNCED_SHADOW")) + "/" + kind + std::to_string(inode);
}

void Wrote(int fd, uint64_t begin, ssize_t size) {
  bool folder = false;
  const ino_t inode = size <= 0 ? 0 : InodeOf(fd, &folder);
  if (inode == 0) return;
  const std::lock_guard<std::mutex> lock(Mutex());
  Files()[inode].dirty.emplace_back(begin, begin + static_cast<uint64_t>(size));
}

void SyncFile(int fd, ino_t inode) {
  struct stat info;
  if (fstat(fd, &info) != 0) return;
  std::vector<std::pair<uint64_t, uint64_t>> dirty;
  {
    const std::lock_guard<std::mutex> lock(Mutex());
    dirty.swap(Files()[inode].dirty);
  }
  const std::string image = ShadowOf("", inode);
  // Also what came by ways that are not watched, as sendfile.
  if (access(image.c_str(), F_OK) != 0) dirty = {{0, static_cast<uint64_t>(info.st_size)}};
  const int shadow = open(image.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (shadow < 0) std::abort();
  // Another descriptor: the caller's may be write-only.
  char link[64];
  std::snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const int source = open(link, O_RDONLY | O_CLOEXEC);
  std::vector<char> buffer(1 << 16);
  for (auto [begin, end] : dirty) {
    while (begin < end) {
      const ssize_t n =
          pread(source, buffer.data(), std::min<uint64_t>(buffer.size(), end - begin), static_cast<off_t>(begin));
      if (n <= 0) break;  // truncated since
      if (RealPwrite(shadow, buffer.data(), static_cast<size_t>(n), static_cast<off64_t>(begin)) != n) std::abort();
      begin += static_cast<uint64_t>(n);
    }
  }
  static const auto real_truncate = Real<int (*)(int, off64_t)>("ftruncate64");
  if (real_truncate(shadow, info.st_size) != 0) std::abort();
  close(source);
  close(shadow);
}

void SyncFolder(int fd, ino_t inode) {
  char link[64];
  std::snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  DIR* const folder = opendir(link);
  if (folder == nullptr) std::abort();
  std::string names;
  while (const dirent* entry = readdir(folder)) {
    if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0)
      names += std::to_string(entry->d_ino) + " " + entry->d_name + "\n";
  }
  closedir(folder);
  // Whole or not at all: a process may die here.
  const std::string target = ShadowOf("names.", inode), temporary = target + ".tmp" + std::to_string(getpid());
  const int shadow = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (shadow < 0 || RealPwrite(shadow, names.data(), names.size(), 0) != static_cast<ssize_t>(names.size()))
    std::abort();
  close(shadow);
  static const auto real_rename = Real<int (*)(const char*, const char*)>("rename");
  if (real_rename(temporary.c_str(), target.c_str()) != 0) std::abort();
}

void Synced(int fd) {
  bool folder = false;
  const ino_t inode = InodeOf(fd, &folder, /*syncs=*/true);
  if (inode == 0) return;
  if (folder) {
    SyncFolder(fd, inode);
  } else {
    SyncFile(fd, inode);
  }
}

}  // namespace

extern "C" {

ssize_t write(int fd, const void* data, size_t size) {
  static const auto real = Real<ssize_t (*)(int, const void*, size_t)>("write");
  const ssize_t n = real(fd, data, size);
  if (n > 0 && Root() != nullptr) {
    const off_t end = lseek(fd, 0, SEEK_CUR);
    if (end >= n) Wrote(fd, static_cast<uint64_t>(end - n), n);
  }
  return n;
}
ssize_t pwrite64(int fd, const void* data, size_t size, off64_t at) {
  const ssize_t n = RealPwrite(fd, data, size, at);
  Wrote(fd, static_cast<uint64_t>(at), n);
  return n;
}
ssize_t pwrite(int fd, const void* data, size_t size, off_t at) {
  return pwrite64(fd, data, size, at);
}
int ftruncate64(int fd, off64_t size) noexcept {
  static const auto real = Real<int (*)(int, off64_t)>("ftruncate64");
  return real(fd, size);  // the size is taken at the next fsync
}
int fsync(int fd) {
  static const auto real = Real<int (*)(int)>("fsync");
  const int result = real(fd);
  if (result == 0) Synced(fd);
  return result;
}
int fdatasync(int fd) {
  static const auto real = Real<int (*)(int)>("fdatasync");
  const int result = real(fd);
  if (result == 0) Synced(fd);
  return result;
}

}  // extern "C"
