// Linked into every program of the tsan preset. Debian's Abseil and gRPC are built without ThreadSanitizer, which so
// sees nothing of absl::Mutex (a futex of its own) and would call everything that a mutex guards a race. The functions
// here take the library's place in the whole process, call it, and tell the sanitizer what happened before what.
#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "absl/synchronization/mutex.h"

extern "C" {
void __tsan_acquire(void* addr);
void __tsan_release(void* addr);

// LibTorch, gRPC and the rest of the system are not instrumented: what they read and write is not looked at.
const char* __tsan_default_options() {
  // Thread leaks: a leader that lost its lead ends at once and joins nobody.
  return "ignore_noninstrumented_modules=1:report_thread_leaks=0:second_deadlock_stack=1:history_size=4:halt_on_error="
         "0:exitcode=66";
}
const char* __tsan_default_suppressions() {
  return "called_from_lib:libtorch_cpu.so\n"
         "called_from_lib:libgomp.so\n"
         "called_from_lib:libprometheus-cpp-pull.so\n"
         "called_from_lib:libsqlite3.so\n"
         // Inlined into our code, ordered by what happens inside its library.
         "race:grpc::internal::\n";
}
}

namespace {

// The mutex whose condition the library may evaluate on this thread, before its call has returned to us.
thread_local absl::Mutex* evaluating = nullptr;

void* Real(const char* symbol) {
  void* real = dlsym(RTLD_NEXT, symbol);
  if (real == nullptr) {
    static const char kMessage[] = "sanitizer_thread.cc: this Abseil names its functions otherwise than Debian 12's\n";
    if (fwrite(kMessage, 1, sizeof(kMessage) - 1, stderr) == 0) std::abort();
    std::abort();
  }
  return real;
}

class Evaluating {
 public:
  explicit Evaluating(absl::Mutex* mutex) : before_(evaluating) { evaluating = mutex; }
  ~Evaluating() { evaluating = before_; }

 private:
  absl::Mutex* const before_;
};

}  // namespace

// The library's function of a member, by its mangled name; looked up once (a plain race of equal values is harmless).
#define RLHF_REAL(type, name)                                                          \
  static std::atomic<void*> found{nullptr};                                            \
  if (found.load(std::memory_order_acquire) == nullptr) found.store(Real("_ZN" name)); \
  const auto real = reinterpret_cast<type>(found.load(std::memory_order_acquire))
#define RLHF_REAL_CONST(type, name)                                                     \
  static std::atomic<void*> found{nullptr};                                             \
  if (found.load(std::memory_order_acquire) == nullptr) found.store(Real("_ZNK" name)); \
  const auto real = reinterpret_cast<type>(found.load(std::memory_order_acquire))

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  RLHF_REAL(void (*)(Mutex*), "4absl7debian35Mutex4LockEv");
  real(this);
  __tsan_acquire(this);
}
void Mutex::Unlock() {
  RLHF_REAL(void (*)(Mutex*), "4absl7debian35Mutex6UnlockEv");
  const Evaluating scope(this);
  __tsan_release(this);
  real(this);
}
bool Mutex::TryLock() {
  RLHF_REAL(bool (*)(Mutex*), "4absl7debian35Mutex7TryLockEv");
  const bool locked = real(this);
  if (locked) __tsan_acquire(this);
  return locked;
}
void Mutex::ReaderLock() {
  RLHF_REAL(void (*)(Mutex*), "4absl7debian35Mutex10ReaderLockEv");
  real(this);
  __tsan_acquire(this);
}
void Mutex::ReaderUnlock() {
  RLHF_REAL(void (*)(Mutex*), "4absl7debian35Mutex12ReaderUnlockEv");
  const Evaluating scope(this);
  __tsan_release(this);
  real(this);
}
void Mutex::LockWhen(const Condition& condition) {
  RLHF_REAL(void (*)(Mutex*, const Condition&), "4absl7debian35Mutex8LockWhenERKNS0_9ConditionE");
  const Evaluating scope(this);
  real(this, condition);
  __tsan_acquire(this);
}
bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  RLHF_REAL(bool (*)(Mutex*, const Condition&, Duration),
            "4absl7debian35Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  const Evaluating scope(this);
  const bool result = real(this, condition, timeout);
  __tsan_acquire(this);
  return result;
}
bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  RLHF_REAL(bool (*)(Mutex*, const Condition&, Time),
            "4absl7debian35Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  const Evaluating scope(this);
  const bool result = real(this, condition, deadline);
  __tsan_acquire(this);
  return result;
}
void Mutex::Await(const Condition& condition) {
  RLHF_REAL(void (*)(Mutex*, const Condition&), "4absl7debian35Mutex5AwaitERKNS0_9ConditionE");
  const Evaluating scope(this);
  __tsan_release(this);
  real(this, condition);
  __tsan_acquire(this);
}
bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  RLHF_REAL(bool (*)(Mutex*, const Condition&, Duration),
            "4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  const Evaluating scope(this);
  __tsan_release(this);
  const bool result = real(this, condition, timeout);
  __tsan_acquire(this);
  return result;
}
bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  RLHF_REAL(bool (*)(Mutex*, const Condition&, Time),
            "4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  const Evaluating scope(this);
  __tsan_release(this);
  const bool result = real(this, condition, deadline);
  __tsan_acquire(this);
  return result;
}
void CondVar::Wait(Mutex* mutex) {
  RLHF_REAL(void (*)(CondVar*, Mutex*), "4absl7debian37CondVar4WaitEPNS0_5MutexE");
  const Evaluating scope(mutex);
  __tsan_release(mutex);
  real(this, mutex);
  __tsan_acquire(mutex);
}
bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  RLHF_REAL(bool (*)(CondVar*, Mutex*, Duration), "4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  const Evaluating scope(mutex);
  __tsan_release(mutex);
  const bool result = real(this, mutex, timeout);
  __tsan_acquire(mutex);
  return result;
}
bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  RLHF_REAL(bool (*)(CondVar*, Mutex*, Time), "4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  const Evaluating scope(mutex);
  __tsan_release(mutex);
  const bool result = real(this, mutex, deadline);
  __tsan_acquire(mutex);
  return result;
}
// A condition reads what the mutex guards, on the waiting thread or on the one that unlocks.
bool Condition::Eval() const {
  RLHF_REAL_CONST(bool (*)(const Condition*), "4absl7debian39Condition4EvalEv");
  absl::Mutex* const mutex = evaluating;
  if (mutex != nullptr) __tsan_acquire(mutex);
  const bool result = real(this);
  if (mutex != nullptr) __tsan_release(mutex);
  return result;
}

ABSL_NAMESPACE_END
}  // namespace absl
