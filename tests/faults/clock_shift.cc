// A library to preload: a process with a wall clock of its own. CLOCK_SHIFT_FILE holds eight bytes, a signed number of
// seconds to add; the test changes them while the process runs. Waits until a moment of that clock end when that many
// real seconds have passed, as with a clock that was set. The monotonic clock is left alone.
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdlib>

namespace {

template <typename Fn>
Fn Real(const char* name) {
  return reinterpret_cast<Fn>(dlsym(RTLD_NEXT, name));
}

const volatile int64_t* Map() {
  const char* const path = std::getenv("CLOCK_SHIFT_FILE");
  const int fd = path == nullptr ? -1 : open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return nullptr;
  void* const at = mmap(nullptr, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  return at == MAP_FAILED ? nullptr : static_cast<const volatile int64_t*>(at);
}
int64_t Shift() {
  static const volatile int64_t* const shift = Map();
  return shift == nullptr ? 0 : *shift;
}
timespec Unshifted(const timespec* at) {
  return {static_cast<time_t>(at->tv_sec - Shift()), at->tv_nsec};
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* at) noexcept {
  static const auto real = Real<int (*)(clockid_t, timespec*)>("clock_gettime");
  const int result = real(clock, at);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += Shift();
  return result;
}
int gettimeofday(timeval* at, void* zone) noexcept {
  static const auto real = Real<int (*)(timeval*, void*)>("gettimeofday");
  const int result = real(at, zone);
  if (result == 0) at->tv_sec += Shift();
  return result;
}
time_t time(time_t* out) noexcept {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out != nullptr) *out = now.tv_sec;
  return now.tv_sec;
}
int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex, const timespec* at) {
  static const auto real = Real<int (*)(pthread_cond_t*, pthread_mutex_t*, const timespec*)>("pthread_cond_timedwait");
  // A condition of the monotonic clock has moments that are years away from the wall clock's.
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at->tv_sec < now.tv_sec / 2) return real(condition, mutex, at);
  const timespec unshifted = Unshifted(at);
  return real(condition, mutex, &unshifted);
}
int pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock, const timespec* at) {
  static const auto real =
      Real<int (*)(pthread_cond_t*, pthread_mutex_t*, clockid_t, const timespec*)>("pthread_cond_clockwait");
  if (clock != CLOCK_REALTIME) return real(condition, mutex, clock, at);
  const timespec unshifted = Unshifted(at);
  return real(condition, mutex, clock, &unshifted);
}
int sem_timedwait(sem_t* semaphore, const timespec* at) {
  static const auto real = Real<int (*)(sem_t*, const timespec*)>("sem_timedwait");
  const timespec unshifted = Unshifted(at);
  return real(semaphore, &unshifted);
}
// Abseil waits through it.
long syscall(long number, ...) noexcept {
  static const auto real = Real<long (*)(long, ...)>("syscall");
  va_list list;
  va_start(list, number);
  long arguments[6];
  for (long& argument : arguments) argument = va_arg(list, long);
  va_end(list);
  timespec unshifted;
  if (number == SYS_futex && (arguments[1] & FUTEX_CLOCK_REALTIME) != 0 && arguments[3] != 0) {
    unshifted = Unshifted(reinterpret_cast<const timespec*>(arguments[3]));
    arguments[3] = reinterpret_cast<long>(&unshifted);
  }
  return real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

}  // extern "C"
