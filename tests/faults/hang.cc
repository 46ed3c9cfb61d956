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

#define REAL(name) static const auto real = Real<decltype(&name)>(#name)

extern "C" {

int open(const char* path, int flags, ...) {
  va_list words;
  va_start(words, flags);
  const mode_t mode = ModeOf(flags, words);
  va_end(words);
  OnPath(path);
  return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}
int open64(const char* path, int flags, ...) {
  va_list words;
  va_start(words, flags);
  const mode_t mode = ModeOf(flags, words);
  va_end(words);
  OnPath(path);
  return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}
int openat(int dir, const char* path, int flags, ...) {
  va_list words;
  va_start(words, flags);
  const mode_t mode = ModeOf(flags, words);
  va_end(words);
  At(dir, path);
  return static_cast<int>(syscall(SYS_openat, dir, path, flags, mode));
}
int openat64(int dir, const char* path, int flags, ...) {
  va_list words;
  va_start(words, flags);
  const mode_t mode = ModeOf(flags, words);
  va_end(words);
  At(dir, path);
  return static_cast<int>(syscall(SYS_openat, dir, path, flags, mode));
}
FILE* fopen(const char* path, const char* mode) {
  REAL(fopen);
  OnPath(path);
  return real(path, mode);
}
FILE* fopen64(const char* path, const char* mode) {
  REAL(fopen64);
  OnPath(path);
  return real(path, mode);
}
DIR* opendir(const char* path) {
  REAL(opendir);
  OnPath(path);
  return real(path);
}
int stat(const char* path, struct stat* info) {
  REAL(stat);
  OnPath(path);
  return real(path, info);
}
int stat64(const char* path, struct stat64* info) {
  REAL(stat64);
  OnPath(path);
  return real(path, info);
}
int lstat(const char* path, struct stat* info) {
  REAL(lstat);
  OnPath(path);
  return real(path, info);
}
int lstat64(const char* path, struct stat64* info) {
  REAL(lstat64);
  OnPath(path);
  return real(path, info);
}
int fstatat(int dir, const char* path, struct stat* info, int flags) {
  REAL(fstatat);
  At(dir, path);
  return real(dir, path, info, flags);
}
int fstatat64(int dir, const char* path, struct stat64* info, int flags) {
  REAL(fstatat64);
  At(dir, path);
  return real(dir, path, info, flags);
}
int fstat(int fd, struct stat* info) {
  REAL(fstat);
  OnFd(fd);
  return real(fd, info);
}
int fstat64(int fd, struct stat64* info) {
  REAL(fstat64);
  OnFd(fd);
  return real(fd, info);
}
int statvfs(const char* path, struct statvfs* info) {
  REAL(statvfs);
  OnPath(path);
  return real(path, info);
}
int statvfs64(const char* path, struct statvfs64* info) {
  REAL(statvfs64);
  OnPath(path);
  return real(path, info);
}
int access(const char* path, int mode) {
  REAL(access);
  OnPath(path);
  return real(path, mode);
}
char* realpath(const char* path, char* resolved) {
  REAL(realpath);
  OnPath(path);
  return real(path, resolved);
}
ssize_t readlink(const char* path, char* target, size_t size) {
  REAL(readlink);
  OnPath(path);
  return real(path, target, size);
}
int mkdir(const char* path, mode_t mode) {
  REAL(mkdir);
  OnPath(path);
  return real(path, mode);
}
int rmdir(const char* path) {
  REAL(rmdir);
  OnPath(path);
  return real(path);
}
int unlink(const char* path) {
  REAL(unlink);
  OnPath(path);
  return real(path);
}
int unlinkat(int dir, const char* path, int flags) {
  REAL(unlinkat);
  At(dir, path);
  return real(dir, path, flags);
}
int remove(const char* path) {
  REAL(remove);
  OnPath(path);
  return real(path);
}
int rename(const char* from, const char* to) {
  REAL(rename);
  OnPath(from);
  OnPath(to);
  return real(from, to);
}
int renameat(int from_dir, const char* from, int to_dir, const char* to) {
  REAL(renameat);
  At(from_dir, from);
  At(to_dir, to);
  return real(from_dir, from, to_dir, to);
}
int link(const char* from, const char* to) {
  REAL(link);
  OnPath(from);
  OnPath(to);
  return real(from, to);
}
int symlink(const char* target, const char* path) {
  REAL(symlink);
  OnPath(path);
  return real(target, path);
}
int truncate(const char* path, off_t size) {
  REAL(truncate);
  OnPath(path);
  return real(path, size);
}
ssize_t read(int fd, void* data, size_t size) {
  REAL(read);
  OnFd(fd);
  return real(fd, data, size);
}
ssize_t pread(int fd, void* data, size_t size, off_t at) {
  REAL(pread);
  OnFd(fd);
  return real(fd, data, size, at);
}
ssize_t pread64(int fd, void* data, size_t size, off64_t at) {
  REAL(pread64);
  OnFd(fd);
  return real(fd, data, size, at);
}
ssize_t write(int fd, const void* data, size_t size) {
  REAL(write);
  OnFd(fd);
  return real(fd, data, size);
}
// As libstdc++'s streams do what is longer than their buffer.
ssize_t writev(int fd, const struct iovec* parts, int count) {
  REAL(writev);
  OnFd(fd);
  return real(fd, parts, count);
}
ssize_t pwrite(int fd, const void* data, size_t size, off_t at) {
  REAL(pwrite);
  OnFd(fd);
  return real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void* data, size_t size, off64_t at) {
  REAL(pwrite64);
  OnFd(fd);
  return real(fd, data, size, at);
}
int fsync(int fd) {
  REAL(fsync);
  OnFd(fd);
  return real(fd);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  OnFd(fd);
  return real(fd);
}

}  // extern "C"
