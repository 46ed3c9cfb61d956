// A library to preload: a volume that hangs, as of an NFS server that is away.
//
// While the file HANG_WHILE is there, calls that touch what lies below the folder HANG_BELOW do not return: looks,
// opens, reads and writes, and what changes names. The file's own volume answers. Memory maps are not watched.
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

template <typename Fn>
Fn Real(const char* name) {
  return reinterpret_cast<Fn>(dlsym(RTLD_NEXT, name));
}

bool Hangs() {
  static const char* const flag = std::getenv("HANG_WHILE");
  return flag != nullptr && syscall(SYS_faccessat, AT_FDCWD, flag, F_OK) == 0;
}

// Of an absolute path.
bool Below(const char* path) {
  static const char* const folder = std::getenv("HANG_BELOW");
  static const size_t size = folder == nullptr ? 0 : std::strlen(folder);
  return size > 0 && std::strncmp(path, folder, size) == 0 && (path[size] == '/' || path[size] == '\0');
}

bool FdBelow(int fd) {
  char link[64], path[4096];
  std::snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof(path) - 1);
  if (size <= 0) return false;
  path[size] = '\0';
  return Below(path);
}

void Wait(bool below) {
  while (below && Hangs()) usleep(20'000);
}
void OnPath(const char* path) {
  if (Hangs()) Wait(path != nullptr && Below(path));
}
void OnFd(int fd) {
  if (Hangs()) Wait(fd >= 0 && FdBelow(fd));
}
void At(int dir, const char* path) {
  if (path == nullptr || path[0] == '/') return OnPath(path);
  OnFd(dir);
}

mode_t ModeOf(int flags, va_list words) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(words, mode_t) : 0;
}

}  // namespace

// Of a call that may be given a mode.
#define MODE(mode)                          \
  va_list words;                            \
  va_start(words, flags);                   \
  const mode_t mode = ModeOf(flags, words); \
  va_end(words)

// A call that waits, and then is what it was.
#define WAITS(result, name, parameters, wait, arguments)   \
  result name parameters {                                 \
    static const auto real = Real<decltype(&name)>(#name); \
    wait;                                                  \
    return real arguments;                                 \
  }

extern "C" {

int open(const char* path, int flags, ...) {
  MODE(mode);
  OnPath(path);
  return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}
int open64(const char* path, int flags, ...) {
  MODE(mode);
  OnPath(path);
  return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}
int openat(int dir, const char* path, int flags, ...) {
  MODE(mode);
  At(dir, path);
  return static_cast<int>(syscall(SYS_openat, dir, path, flags, mode));
}
int openat64(int dir, const char* path, int flags, ...) {
  MODE(mode);
  At(dir, path);
  return static_cast<int>(syscall(SYS_openat, dir, path, flags, mode));
}

WAITS(FILE*, fopen, (const char* path, const char* mode), OnPath(path), (path, mode))
WAITS(FILE*, fopen64, (const char* path, const char* mode), OnPath(path), (path, mode))
WAITS(DIR*, opendir, (const char* path), OnPath(path), (path))
WAITS(int, stat, (const char* path, struct stat* info), OnPath(path), (path, info))
WAITS(int, stat64, (const char* path, struct stat64* info), OnPath(path), (path, info))
WAITS(int, lstat, (const char* path, struct stat* info), OnPath(path), (path, info))
WAITS(int, lstat64, (const char* path, struct stat64* info), OnPath(path), (path, info))
WAITS(int, fstatat, (int dir, const char* path, struct stat* info, int flags), At(dir, path), (dir, path, info, flags))
WAITS(int, fstatat64, (int dir, const char* path, struct stat64* info, int flags), At(dir, path),
      (dir, path, info, flags))
WAITS(int, fstat, (int fd, struct stat* info), OnFd(fd), (fd, info))
WAITS(int, fstat64, (int fd, struct stat64* info), OnFd(fd), (fd, info))
WAITS(int, statvfs, (const char* path, struct statvfs* info), OnPath(path), (path, info))
WAITS(int, statvfs64, (const char* path, struct statvfs64* info), OnPath(path), (path, info))
WAITS(int, access, (const char* path, int mode), OnPath(path), (path, mode))
WAITS(char*, realpath, (const char* path, char* resolved), OnPath(path), (path, resolved))
WAITS(ssize_t, readlink, (const char* path, char* target, size_t size), OnPath(path), (path, target, size))
WAITS(int, mkdir, (const char* path, mode_t mode), OnPath(path), (path, mode))
WAITS(int, rmdir, (const char* path), OnPath(path), (path))
WAITS(int, unlink, (const char* path), OnPath(path), (path))
WAITS(int, unlinkat, (int dir, const char* path, int flags), At(dir, path), (dir, path, flags))
WAITS(int, remove, (const char* path), OnPath(path), (path))
WAITS(int, rename, (const char* from, const char* to), (OnPath(from), OnPath(to)), (from, to))
WAITS(int, renameat, (int from_dir, const char* from, int to_dir, const char* to), (At(from_dir, from), At(to_dir, to)),
      (from_dir, from, to_dir, to))
WAITS(int, link, (const char* from, const char* to), (OnPath(from), OnPath(to)), (from, to))
WAITS(int, symlink, (const char* target, const char* path), OnPath(path), (target, path))
WAITS(int, utimensat, (int dir, const char* path, const struct timespec* times, int flags), At(dir, path),
      (dir, path, times, flags))
WAITS(int, truncate, (const char* path, off_t size), OnPath(path), (path, size))
WAITS(ssize_t, read, (int fd, void* data, size_t size), OnFd(fd), (fd, data, size))
WAITS(ssize_t, pread, (int fd, void* data, size_t size, off_t at), OnFd(fd), (fd, data, size, at))
WAITS(ssize_t, pread64, (int fd, void* data, size_t size, off64_t at), OnFd(fd), (fd, data, size, at))
WAITS(ssize_t, write, (int fd, const void* data, size_t size), OnFd(fd), (fd, data, size))
// As libstdc++'s streams do what is longer than their buffer.
WAITS(ssize_t, writev, (int fd, const struct iovec* parts, int count), OnFd(fd), (fd, parts, count))
WAITS(ssize_t, pwrite, (int fd, const void* data, size_t size, off_t at), OnFd(fd), (fd, data, size, at))
WAITS(ssize_t, pwrite64, (int fd, const void* data, size_t size, off64_t at), OnFd(fd), (fd, data, size, at))
WAITS(int, fsync, (int fd), OnFd(fd), (fd))
WAITS(int, fdatasync, (int fd), OnFd(fd), (fd))

}  // extern "C"
